"""The service's address as the arguments of a channel."""

from __future__ import annotations

from dbos_actors.rpc.wire.addresses import AddressError, UnixAddress, parse_address


def channel_target(address: str) -> tuple[str | None, int | None, str | None]:
    """Host, port and path, as channels take them, of an address.

    Raises ValueError for anything but ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``.
    """
    try:
        parsed = parse_address(address, host_required=True)
    except AddressError as error:
        text = f"{address!r} is not HOST:PORT, [IPV6]:PORT or unix:PATH: it {error.problem}"
        raise ValueError(text) from error
    if isinstance(parsed, UnixAddress):
        return None, None, parsed.path
    return parsed.host, parsed.port, None
