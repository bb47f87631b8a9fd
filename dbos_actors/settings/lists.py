"""Settings that are lists: parts between commas, each checked when the settings are read."""

from __future__ import annotations

import re
from typing import Final

from dbos_actors.rpc.connect.origins import ANY, parse_origin
from dbos_actors.rpc.wire.addresses import AddressError, parse_address

_HOST: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.\-_]{0,252}[a-zA-Z0-9])?")


def split_list(text: str) -> list[str]:
    """The parts of a list, without the spaces around them; empty ones do not count."""
    return [part.strip() for part in text.split(",") if part.strip()]


def checked_addresses(text: str) -> str:
    """A list of addresses to listen on. Raises ValueError."""
    for address in split_list(text):
        try:
            parse_address(address, host_required=True)
        except AddressError as error:
            raise ValueError(error.problem) from None
    return text


def checked_hosts(text: str) -> str:
    """A list of host names, or ``*``. Raises ValueError."""
    for host in split_list(text):
        if host != ANY and not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} must be a host name without a port, or *")
    return text


def checked_origins(text: str) -> str:
    """A list of origins. Raises ValueError."""
    for origin in split_list(text):
        parse_origin(origin)
    return text
