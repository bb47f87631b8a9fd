"""A client of plain HTTP requests over either version, for tests of what is not gRPC."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import h11
import trio

from dbos_actors.rpc.wire.http2 import (
    ConnectionClosed,
    DataReceived,
    Http2Connection,
    Http2Options,
    ResponseReceived,
    StreamClosed,
    StreamError,
    StreamReset,
)

TIMEOUT_S = 20.0


@dataclass
class Response:
    """What a request got."""

    status: int = 0
    headers: Mapping[bytes, bytes] | None = None
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """A field's value."""
        value = (self.headers or {}).get(name.encode())
        return None if value is None else value.decode()

    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)

    def envelopes(self) -> tuple[list[bytes], Any]:
        """The messages of a streaming response, and its end."""
        rest = self.body
        messages: list[bytes] = []
        while rest:
            flag, size = rest[0], int.from_bytes(rest[1:5], "big")
            body, rest = rest[5 : 5 + size], rest[5 + size :]
            if flag == 2:
                assert rest == b"", "bytes behind the end"
                return messages, json.loads(body)
            messages.append(gzip.decompress(body) if flag == 1 else body)
        raise AssertionError("no end of the stream")


class HttpClient:
    """One connection. Requests follow each other."""

    def __init__(self, stream: trio.abc.Stream, authority: str, *, is_http2: bool) -> None:
        self.stream = stream
        self.authority = authority
        self.is_http2 = is_http2
        self._h11 = h11.Connection(h11.CLIENT)
        self._h2 = Http2Connection.client(Http2Options(reset_burst=10**9))

    async def post(
        self, path: str, value: Any = None, content_type: str = "application/json", **headers: str
    ) -> Response:
        """A POST; a value that is not bytes is sent as JSON."""
        body = value if isinstance(value, bytes) else json.dumps(value or {}).encode()
        return await self.request("POST", path, body, content_type=content_type, **headers)

    async def get(self, path: str, **headers: str) -> Response:
        """A GET."""
        return await self.request("GET", path, b"", **headers)

    async def request(self, verb: str, path: str, body: bytes = b"", **headers: str) -> Response:
        """One request and its response. Raises EOFError if the connection ends before."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        host = named.pop("host", self.authority)
        with trio.fail_after(TIMEOUT_S):
            if self.is_http2:
                return await self._over_http2(verb, path, body, host, named)
            return await self._over_http1(verb, path, body, host, named)

    async def _over_http1(
        self, verb: str, path: str, body: bytes, host: str, headers: dict[str, str]
    ) -> Response:
        if body or verb == "POST":
            headers = {"content-length": str(len(body)), **headers}
        engine = self._h11
        fields = [("host", host), *headers.items()]
        parts = [engine.send(h11.Request(method=verb, target=path, headers=fields))]
        if body:
            parts.append(engine.send(h11.Data(data=body)))
        parts.append(engine.send(h11.EndOfMessage()))
        with suppress(trio.BrokenResourceError):  # answered before it was read
            await self.stream.send_all(b"".join([part for part in parts if part]))
        response = Response()
        while True:
            event = engine.next_event()
            if event is h11.NEED_DATA:
                engine.receive_data(bytes(await self.stream.receive_some(1 << 16)))
            elif isinstance(event, h11.Response):
                response.status, response.headers = event.status_code, dict(event.headers)
            elif isinstance(event, h11.Data):
                response.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                if engine.our_state is h11.DONE and engine.their_state is h11.DONE:
                    engine.start_next_cycle()
                return response
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError

    async def _over_http2(
        self, verb: str, path: str, body: bytes, host: str, headers: dict[str, str]
    ) -> Response:
        engine = self._h2
        fields = [(":method", verb), (":scheme", "http"), (":path", path), (":authority", host)]
        stream_id = engine.send_request(
            [(name.encode(), value.encode()) for name, value in [*fields, *headers.items()]],
            end_stream=not body,
        )
        if body:
            engine.send_data(stream_id, body, end_stream=True)
        response = Response()
        is_whole = False
        while True:
            with suppress(trio.BrokenResourceError):
                while data := engine.output(1 << 16):
                    await self.stream.send_all(data)
            for event in engine.events():
                match event:
                    case ResponseReceived():
                        response.headers = dict(event.headers)
                        response.status = int(response.headers[b":status"])
                        is_whole = event.end_stream
                    case DataReceived():
                        response.body += event.data
                        with suppress(*StreamError):
                            engine.acknowledge(len(event.data), event.stream_id)
                        is_whole = event.end_stream
                    case StreamClosed() if event.stream_id == stream_id:
                        return response
                    case StreamReset() if is_whole:  # although the request was not
                        return response
                    case StreamReset():
                        raise EOFError
                    case ConnectionClosed():
                        raise EOFError
            received = await self.stream.receive_some(1 << 16)
            if not received:
                raise EOFError
            engine.receive(bytes(received))


@asynccontextmanager
async def open_http(address: str, *, is_http2: bool = False) -> AsyncIterator[HttpClient]:
    """A connection to ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    try:
        yield HttpClient(stream, address, is_http2=is_http2)
    finally:
        await trio.aclose_forcefully(stream)
