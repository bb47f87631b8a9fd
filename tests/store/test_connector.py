"""Addresses, and the real connectors against their contract."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from dbos_actors.errors import ConfigurationError
from dbos_actors.store import (
    ConnectionLostError,
    Connector,
    TcpConnector,
    UnixConnector,
    connector_for,
    pack,
)
from dbos_actors.store.connection import Connection
from tests.store.contract_connector import ConnectorContract
from tests.support.valkey import ValkeyServer


class TestUnixConnector(ConnectorContract):
    @pytest.fixture
    def connector(self, valkey: ValkeyServer) -> Connector:
        return connector_for(valkey.address)


class TestTcpConnector(ConnectorContract):
    @pytest.fixture
    def connector(self, start_valkey: Callable[..., ValkeyServer]) -> Connector:
        server = start_valkey(tcp=True, requirepass="p%ss")
        return connector_for(f"redis://default:p%25ss@{server.tcp_address}/2")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost", TcpConnector("localhost")),
        ("redis.example:7000", TcpConnector("redis.example", 7000)),
        ("[::1]:7000", TcpConnector("::1", 7000)),
        (" redis://h ", TcpConnector("h")),
        ("redis://u:p%40ss@h:1/3", TcpConnector("h", 1, "u", "p@ss", 3)),
        ("redis://:secret@h", TcpConnector("h", password="secret")),
        ("unix:///run/redis.sock", UnixConnector("/run/redis.sock")),
        ("unix://u:p@/run/redis.sock?db=4", UnixConnector("/run/redis.sock", "u", "p", 4)),
    ],
)
def test_an_address_means(address: str, expected: Connector) -> None:
    connector = connector_for(address)
    assert connector == expected


@pytest.mark.parametrize(
    "address", ["http://h", "redis://h:port", "h:0x1", "unix://", "redis://h/?ssl_cert_reqs=1&db=x"]
)
def test_an_address_that_makes_no_sense_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_ADDR"):
        connector_for(address)


@pytest.mark.parametrize(
    "address", ["redis://u:sesame@h", "rediss://:sesame@h/2", "unix://u:sesame@/s"]
)
def test_no_password_is_shown(address: str) -> None:
    connector = connector_for(address)
    assert connector.password == "sesame"
    assert "sesame" not in connector.address
    assert "sesame" not in repr(connector)


def test_no_password_is_shown_when_the_address_is_wrong() -> None:
    with pytest.raises(ConfigurationError) as raised:
        connector_for("redis://u:sesame@h:x")
    assert "sesame" not in str(raised.value)


async def test_why_nobody_answers_is_said_in_the_systems_words() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(ConnectionLostError, match="Connection refused"):
        await TcpConnector("127.0.0.1", port).connect()
    with pytest.raises(ConnectionLostError, match="No such file"):
        await UnixConnector("/nowhere/s").connect()


# -------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*command.split(), *subject, "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return cert, key


async def serve_tls(
    valkey: ValkeyServer,
    certificate: tuple[Path, Path],
    *,
    task_status: trio.TaskStatus[int],
) -> None:
    """Terminate TLS before a Valkey, as the build at hand has none of its own."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def handle(secured: trio.SSLStream[trio.SocketStream]) -> None:
        plain = await trio.open_unix_socket(str(valkey.socket_path))

        async def copy(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
            try:
                async for data in source:
                    await sink.send_all(data)
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()

        async with plain, trio.open_nursery() as nursery:
            nursery.start_soon(copy, secured, plain)
            nursery.start_soon(copy, plain, secured)

    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    transport = listeners[0].transport_listener
    assert isinstance(transport, trio.SocketListener)
    task_status.started(transport.socket.getsockname()[1])
    await trio.serve_listeners(handle, listeners)


async def test_rediss_verifies_the_certificate(
    valkey: ValkeyServer, certificate: tuple[Path, Path], nursery: trio.Nursery
) -> None:
    async def ping(address: str) -> object:
        connection = Connection(await connector_for(address).connect())
        try:
            return await connection.call(pack("PING"), 1)
        finally:
            await connection.aclose()

    port = await nursery.start(serve_tls, valkey, certificate)
    trusted = f"ssl_ca_certs={certificate[0]}"
    assert await ping(f"rediss://localhost:{port}?{trusted}") == [b"PONG"]
    assert await ping(f"rediss://127.0.0.1:{port}?{trusted}&ssl_check_hostname=false") == [b"PONG"]
    assert await ping(f"rediss://localhost:{port}?ssl_cert_reqs=none") == [b"PONG"]
    with pytest.raises(ConnectionLostError, match=r"TLS.*self-signed"):
        await ping(f"rediss://localhost:{port}")
    with pytest.raises(ConnectionLostError, match=r"TLS.*mismatch"):
        await ping(f"rediss://127.0.0.1:{port}?{trusted}")


def test_tls_files_that_cannot_be_read_are_a_matter_of_configuration() -> None:
    with pytest.raises(ConfigurationError, match="TLS files"):
        connector_for("rediss://h?ssl_ca_certs=/nowhere")
