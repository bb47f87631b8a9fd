"""Addresses of servers, as people write them: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``.

Servers listen on them, channels connect to them, and settings check them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

_PORT_MAX = 65_535


class AddressError(ValueError):
    """An address that is not of one of the forms above."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(f"{address!r} {problem}")
        self.problem = problem
        """What is wrong, without the address: "must ..."."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, which may be empty when a server listens on every interface, and a port.

    A server that listens on port 0 gets any free one.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket file."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address: TypeAlias = TcpAddress | UnixAddress


def parse_address(address: str, *, host_required: bool = False) -> Address:
    """The address in a text; ``:PORT`` is one too unless ``host_required``.

    ``unix:///PATH`` means ``unix:/PATH``. Raises `AddressError`.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        path = path[2:] if path.startswith("///") else path
        if not path:
            raise AddressError(address, "must name a path after unix:")
        return UnixAddress(path)
    host, colon, port = address.rpartition(":")
    is_number = port.isascii() and port.isdigit()
    if not colon or not is_number or (host_required and not host):
        raise AddressError(address, "must be HOST:PORT or unix:PATH")
    if int(port) > _PORT_MAX:
        raise AddressError(address, f"must have a port from 0 to {_PORT_MAX}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(address, "must have an IPv6 address in brackets")
    return TcpAddress(host, int(port))
