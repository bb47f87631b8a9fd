"""Which web requests may be answered at all: by the host that they name, and by their origin.

A web page can have its visitor's browser send requests to any address that the browser reaches,
also to a server on the visitor's own machine. Three rules keep such a page out:

1. *Host.* A page whose name is made to point to 127.0.0.1 (DNS rebinding) is of the server's own
   origin for the browser, so the rule of origins does not see it. But its requests name the page's
   host. On a loopback address, only hosts are answered that nobody can make point elsewhere
   (``localhost``, IP addresses) or that the server was told of.
2. *Origin.* Browsers tell the origin of the page with every request that could change something. A
   request of another origin is refused, unless the server was told of that origin. Then the answer
   has the headers that let the page read it (CORS).
3. *Site.* A GET that loads an image or a script has no origin. Browsers tell by
   ``sec-fetch-site`` that it is of another site, and it is refused.

Who is no browser sends none of these headers, and could send any: these rules defend browsers, and
tokens defend the server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from dbos_actors.rpc.wire.status import Fields

ANY: Final = "*"
"""In `WebPolicy.hosts`: every name is answered."""

_PREFLIGHT_S: Final = 7_200
"""How long a browser may remember a preflight's answer; the most that browsers grant."""

_OWN_SITES: Final = frozenset({b"same-origin", b"none"})
"""``none``: typed by the user, or opened from a bookmark."""

_HEADER_NAMES: Final = re.compile(rb"[a-zA-Z0-9\-_, ]{0,1024}")
_PORT: Final = re.compile(r":[0-9]{0,5}\Z")
_ORIGIN: Final = re.compile(
    r"https?://[a-z0-9.\-_]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?"
)


class OriginError(ValueError):
    """A text that is no origin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPolicy:
    """What a server was told about the web."""

    hosts: frozenset[str] = frozenset()
    """Names under which it is reached on loopback, beside ``localhost``; lower case, no ports."""
    origins: frozenset[str] = frozenset()
    """Origins whose pages may call it, as browsers write them."""

    @classmethod
    def of(cls, *, hosts: Collection[str] = (), origins: Collection[str] = ()) -> WebPolicy:
        """A policy of names as people write them. Raises `OriginError`."""
        return cls(
            hosts=frozenset(host.lower() for host in hosts),
            origins=frozenset(map(parse_origin, origins)),
        )


def parse_origin(text: str) -> str:
    """An origin, ``https://HOST[:PORT]``, as browsers write it. Raises `OriginError`."""
    origin = text.strip().lower().rstrip("/")
    if not _ORIGIN.fullmatch(origin):
        raise OriginError(f"{text!r} must be https://HOST or https://HOST:PORT (or http://)")
    scheme, _, host = origin.partition("://")
    default = ":443" if scheme == "https" else ":80"
    return origin.removesuffix(default) if host.endswith(default) else origin


def host_problem(policy: WebPolicy, fields: Mapping[bytes, bytes], *, is_loopback: bool) -> str:
    """Why a request's host is not answered; empty: it is."""
    authority = fields.get(b":authority") or fields.get(b"host")
    if authority is None or not is_loopback or ANY in policy.hosts:
        return ""
    host = _PORT.sub("", authority.decode("ascii", "replace")).lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost") or host in policy.hosts:
        return ""
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return f"the host {host[:64]!r} is not one of this server's"
    return ""


def origin_problem(policy: WebPolicy, fields: Mapping[bytes, bytes]) -> str:
    """Why a request's origin is not answered; empty: it is."""
    origin = fields.get(b"origin")
    if origin is None:
        site = fields.get(b"sec-fetch-site")
        if site is None or site in _OWN_SITES:
            return ""
        return "requests of pages of other sites are not answered"
    if is_own_origin(fields) or origin.decode("ascii", "replace") in policy.origins:
        return ""
    return f"the origin {origin[:64].decode('ascii', 'replace')!r} may not call this server"


def is_own_origin(fields: Mapping[bytes, bytes]) -> bool:
    """Whether the page that makes a request came from this server.

    The scheme is not compared: behind a proxy that ends TLS, the server does not know it.
    """
    scheme, _, host = fields.get(b"origin", b"").partition(b"://")
    authority = fields.get(b":authority") or fields.get(b"host") or b""
    return scheme in {b"http", b"https"} and host.lower() == authority.lower() != b""


def cors_fields(policy: WebPolicy, fields: Mapping[bytes, bytes]) -> Fields:
    """The headers that let a page of an origin that the server was told of read the answer."""
    origin = fields.get(b"origin")
    if origin is None or origin.decode("ascii", "replace") not in policy.origins:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"origin"),
    ]


def preflight_fields(policy: WebPolicy, fields: Mapping[bytes, bytes]) -> Fields:
    """The headers of the answer to a browser's question whether a page may call."""
    found = cors_fields(policy, fields)
    if not found:
        return []
    wanted = fields.get(b"access-control-request-headers", b"")
    found += [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-max-age", b"%d" % _PREFLIGHT_S),
    ]
    if wanted and _HEADER_NAMES.fullmatch(wanted):
        found.append((b"access-control-allow-headers", wanted))
    if fields.get(b"access-control-request-private-network") == b"true":
        found.append((b"access-control-allow-private-network", b"true"))
    return found
