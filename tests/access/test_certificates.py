"""Principals by the names in their client certificates, with mutual TLS."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from dbos_actors.access import token_file
from dbos_actors.access.entries import Entry, digest_of, new_token
from dbos_actors.access.roles import Role
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Connection, Http2Options, ResponseReceived
from dbos_actors.rpc.wire.peers import NAMES_MAX, names_of
from tests.support.servers import ServerThread

TIMEOUT_S: Final = 10.0


class Authority:
    """Signs certificates for servers and clients of a test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate, self._key = self._made("authority")

    def sign(self, name: str, *alternative_names: str) -> tuple[Path, Path]:
        """A certificate for a common name, with its key."""
        options = ["-CA", str(self.certificate), "-CAkey", str(self._key)]
        options += ["-addext", "basicConstraints=critical,CA:FALSE"]
        if alternative_names:
            options += ["-addext", f"subjectAltName={','.join(alternative_names)}"]
        return self._made(name, *options)

    def _made(self, name: str, *options: str) -> tuple[Path, Path]:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        command += [*options, "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        return certificate, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(
    start_server: Callable[..., ServerThread], authority: Authority, path: Path
) -> ServerThread:
    for name, role, shown in (
        ("control-1", Role.CONTROL, "DNS:control.example"),
        ("viewer", Role.READER, "CN:viewer"),
        ("spiffe", Role.WORKER, "URI:spiffe://net/worker"),
    ):
        token_file.add(path, Entry(name=name, role=role, certificate=shown))
    certificate, key = authority.sign("server", "IP:127.0.0.1")
    return start_server(
        auth_token_file=path,
        tls_cert=certificate,
        tls_key=key,
        tls_client_ca=authority.certificate,
    )


def status_of(
    server: ServerThread,
    authority: Authority,
    files: tuple[Path, Path],
    method: str,
    token: str | None = None,
) -> str:
    credentials = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(), files[1].read_bytes(), files[0].read_bytes()
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(server.address, credentials, options=options) as channel:
        call = channel.unary_unary(f"/dbos.DBOS/{method}")
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        try:
            call(b"", timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def test_the_names_of_a_certificate_decide_the_role(
    server: ServerThread, authority: Authority
) -> None:
    control = authority.sign("anything", "DNS:other.example", "DNS:control.example")
    viewer = authority.sign("viewer")
    worker = authority.sign("w", "URI:spiffe://net/worker")
    nobody = authority.sign("nobody", "DNS:viewer", "DNS:elsewhere.example")
    expected = {
        (control, "DeleteAgent"): "OK",
        (control, "LeaseTasks"): "OK",
        (viewer, "ListAgents"): "OK",
        (viewer, "DeleteAgent"): "PERMISSION_DENIED",
        (worker, "LeaseTasks"): "OK",
        (worker, "ListAgents"): "PERMISSION_DENIED",
        (nobody, "ListAgents"): "UNAUTHENTICATED",
    }
    found = {
        (files, method): status_of(server, authority, files, method) for files, method in expected
    }
    assert found == expected


def test_a_token_wins_over_the_certificate(
    server: ServerThread, authority: Authority, path: Path
) -> None:
    viewer = authority.sign("viewer")
    token = new_token()
    token_file.add(path, Entry(name="admin", role=Role.ADMIN, sha256=digest_of(token.encode())))
    deadline_s = time.monotonic() + TIMEOUT_S
    while status_of(server, authority, viewer, "DeleteAgent", token) != "OK":
        assert time.monotonic() < deadline_s
    assert status_of(server, authority, viewer, "ListAgents", "wrong") == "UNAUTHENTICATED"


def test_a_call_that_comes_with_the_end_of_the_handshake_is_known_by_its_certificate(
    server: ServerThread, authority: Authority
) -> None:
    """The client's certificate, its Finished and the first request in one segment."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(*authority.sign("viewer"))
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    engine = Http2Connection.client(Http2Options())
    headers = {
        b":method": b"POST",
        b":scheme": b"https",
        b":path": b"/dbos.DBOS/ListAgents",
        b":authority": b"x",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    stream_id = engine.send_request([*headers.items()])
    engine.send_data(stream_id, frame(b""), end_stream=True)
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as sock:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65_536))
        tls.write(engine.output(65_536))
        sock.sendall(outgoing.read())
        headers = answer(sock, incoming, tls, engine)
    assert headers[b":status"] == b"200"
    assert b"grpc-status" not in headers, "the call was refused when its headers came"


def answer(
    sock: socket.socket, incoming: ssl.MemoryBIO, tls: Any, engine: Any
) -> dict[bytes, bytes]:
    """The headers of the first response."""
    while True:
        incoming.write(sock.recv(65_536))
        with suppress(ssl.SSLWantReadError):
            while True:
                engine.receive(tls.read(65_536))
                for event in engine.events():
                    if isinstance(event, ResponseReceived):
                        return dict(event.headers)


def test_names_are_told_apart_by_their_kind() -> None:
    certificate = {
        "subject": ((("organizationName", "o"),), (("commonName", "a"),)),
        "subjectAltName": (
            ("DNS", "b"),
            ("IP Address", "::1"),
            ("URI", "spiffe://x"),
            ("email", "m@x"),
        ),
    }
    assert names_of(certificate) == ("DNS:b", "IP:::1", "URI:spiffe://x", "email:m@x", "CN:a")
    assert names_of(None) == names_of({}) == ()
    many = {"subjectAltName": [("DNS", str(number)) for number in range(1_000)]}
    assert len(names_of(many)) == NAMES_MAX
