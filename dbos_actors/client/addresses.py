"""Where the service is, as its clients write it."""

from __future__ import annotations


def parse_address(address: str) -> tuple[str | None, int | None, str | None]:
    """Host, port and path, as channels take them, of ``HOST:PORT``, ``[IPV6]:PORT`` or
    ``unix:PATH``. Raises ValueError for anything else.
    """
    if address.startswith("unix:") and len(address) > len("unix:"):
        return None, None, address.removeprefix("unix:")
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not (port.isascii() and port.isdigit()) or (":" in host and not bracketed):
        raise ValueError(f"{address!r} is not HOST:PORT, [IPV6]:PORT or unix:PATH")
    return host.removeprefix("[").removesuffix("]"), int(port), None
