"""TLS and mutual TLS, with gRPC core and with Python's own client side."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from grpclib.const import Status
from structlog.testing import capture_logs

from dbos_actors.rpc.server.listeners import bound_address, open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.tls import ContextProvider, ReloadingContext, server_context

MakeServer = Callable[..., Server]


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1; it is its own authority."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def read(path: Path) -> bytes:
    return path.read_bytes()


def call(address: str, credentials: grpc.ChannelCredentials, body: bytes = b"x") -> Any:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        try:
            return channel.unary_unary("/test.Test/Echo")(body, timeout=5)
        except grpc.RpcError as error:
            return error.code()


@pytest.fixture
def start(make_server: MakeServer, nursery: trio.Nursery) -> Callable[..., Any]:
    async def start_server(
        tls: ContextProvider, handler: Callable[[UnaryCall], None] | None = None
    ) -> str:
        server = make_server({"Echo": handler or (lambda call: call.reply(call.request))})
        listeners = await open_listeners("127.0.0.1:0", tls=tls)
        await nursery.start(server.serve, listeners)
        return bound_address(listeners[0])

    return start_server


async def test_calls_under_tls_are_answered_large_ones_too(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    address = await start(lambda: server_context(certificate, key))
    trusted = grpc.ssl_channel_credentials(read(certificate))
    for body in (b"x", b"y" * 3_000_000):
        assert await trio.to_thread.run_sync(call, address, trusted, body) == body


async def test_mutual_tls_demands_a_certificate_and_shows_it_to_the_handler(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    known, known_key = make_certificate(tmp_path, "known")
    strange, strange_key = make_certificate(tmp_path, "strange")

    def handler(call: UnaryCall) -> None:
        assert call.peer_certificate is not None
        call.reply(str(call.peer_certificate["subject"]).encode())

    address = await start(
        lambda: server_context(certificate, key, client_authorities=known), handler
    )
    authority = read(certificate)
    good = grpc.ssl_channel_credentials(authority, read(known_key), read(known))
    bad = grpc.ssl_channel_credentials(authority, read(strange_key), read(strange))
    none = grpc.ssl_channel_credentials(authority)
    assert await trio.to_thread.run_sync(call, address, good) == b"((('commonName', 'known'),),)"
    for credentials in (bad, none):
        code = await trio.to_thread.run_sync(call, address, credentials)
        assert code is grpc.StatusCode.UNAVAILABLE


async def test_a_new_certificate_serves_new_connections_and_a_bad_one_is_not_used(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    certificate, key = make_certificate(tmp_path, "server")
    first = read(certificate)
    new_certificate, new_key = make_certificate(tmp_path / "new", "server")
    address = await start(ReloadingContext(certificate, key))

    async def trusts(authority: bytes) -> bool:
        answer = await trio.to_thread.run_sync(
            call, address, grpc.ssl_channel_credentials(authority)
        )
        return bool(answer == b"x")

    assert await trusts(first)
    with capture_logs() as logs:
        certificate.write_bytes(read(new_certificate))  # half of a renewal: the key is the old one
        assert await trusts(first)
        key.write_bytes(read(new_key))
        assert await trusts(read(new_certificate))
        assert not await trusts(first)
    events = [entry["event"] for entry in logs]
    assert events[:2] == ["certificate not reloaded", "certificate reloaded"]


async def test_a_client_that_does_not_speak_tls_is_closed(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    address = await start(lambda: server_context(certificate, key))
    host, _, port = address.rpartition(":")
    plain = await trio.open_tcp_stream(host, int(port))
    await plain.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100))
    with trio.fail_after(5), suppress(trio.BrokenResourceError):
        while await plain.receive_some():
            pass
    await plain.aclose()


@pytest.mark.parametrize("protocols", [["http/1.1"], []])
async def test_a_client_that_does_not_choose_h2_speaks_http1(
    start: Callable[..., Any], tmp_path: Path, protocols: list[str]
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    address = await start(lambda: server_context(certificate, key))
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(certificate))
    if protocols:
        context.set_alpn_protocols(protocols)
    tcp = await trio.open_tcp_stream(host, int(port))
    stream = trio.SSLStream(tcp, context, server_hostname="127.0.0.1", https_compatible=True)
    received = b""
    with trio.fail_after(5):
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        while data := await stream.receive_some():
            received += data
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    await trio.aclose_forcefully(stream)


async def test_a_handshake_in_pieces_and_a_slow_reader_lose_nothing(
    start: Callable[..., Any], tmp_path: Path, make_client: Callable[..., Any]
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    address = await start(lambda: server_context(certificate, key))
    host, _, port = address.rpartition(":")
    tcp = await trio.open_tcp_stream(host, int(port))
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")

    async def send_bytewise() -> None:
        for byte in outgoing.read():
            await tcp.send_all(bytes([byte]))

    with trio.fail_after(20):
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await send_bytewise()
                incoming.write(await tcp.receive_some())
        client = make_client()
        body = bytes(range(256)) * 4_000
        stream = client.request(body)
        answer = client.answers[stream]
        while not answer.closed:
            if data := client.output():
                tls.write(data)
            if data := outgoing.read():
                await tcp.send_all(data)
            try:
                client.receive(tls.read(1 << 16))
            except ssl.SSLWantReadError:
                incoming.write(await tcp.receive_some(1_000))
    assert answer.body == frame(body)
    assert answer.status is Status.OK
    await tcp.aclose()


async def test_a_context_that_cannot_be_had_costs_its_connection_and_no_other(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    broken = True

    def provide() -> ssl.SSLContext:
        if broken:
            raise PermissionError(13, "no")
        return server_context(certificate, key)

    address = await start(provide)
    trusted = grpc.ssl_channel_credentials(read(certificate))
    answer = await trio.to_thread.run_sync(call, address, trusted)
    assert answer is grpc.StatusCode.UNAVAILABLE
    broken = False
    assert await trio.to_thread.run_sync(call, address, trusted) == b"x"


async def test_a_connection_that_the_server_ends_has_a_goaway_and_close_notify(
    start: Callable[..., Any], tmp_path: Path, make_client: Callable[..., Any]
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    address = await start(lambda: server_context(certificate, key))
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2"])
    tcp = await trio.open_tcp_stream(host, int(port))
    stream = trio.SSLStream(tcp, context, server_hostname="127.0.0.1", https_compatible=False)
    client = make_client()
    for _ in range(4):
        client.engine.ping(b"too many")
    await stream.send_all(client.output())
    data = b""
    with trio.fail_after(10):
        while part := await stream.receive_some():  # an end without close_notify would raise
            data += part
    assert data.endswith(b"too_many_pings")
    await trio.aclose_forcefully(stream)


def test_only_tls_1_2_and_later_with_forward_secrecy_are_offered(tmp_path: Path) -> None:
    context = server_context(*make_certificate(tmp_path, "server"))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert all(name.startswith(("TLS_", "ECDHE-")) for name in names)
