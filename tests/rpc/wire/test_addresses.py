from __future__ import annotations

import pytest

from dbos_actors.rpc.wire.addresses import AddressError, TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        (":0", TcpAddress("", 0)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:///run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:a.sock", UnixAddress("a.sock")),
    ],
)
def test_an_address_is_a_host_and_port_or_a_path(
    address: str, parsed: TcpAddress | UnixAddress
) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address", ["", "host", "host:", "host:x", "host:70000", "::1:80", "unix:"]
)
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(AddressError):
        parse_address(address)


@pytest.mark.parametrize("address", [":80", ":", ""])
def test_an_address_to_connect_to_must_name_a_host(address: str) -> None:
    with pytest.raises(AddressError, match="must be HOST:PORT or unix:PATH"):
        parse_address(address, host_required=True)


@pytest.mark.parametrize("address", ["127.0.0.1:80", "[::1]:80", "unix:/run/a.sock", "unix:a"])
def test_an_address_is_written_as_it_is_read(address: str) -> None:
    assert str(parse_address(address)) == address
