"""Real clients of every kind, behind one synchronous face so that one test can use them all.

`GrpcioClient` (the C core, blocking), `AioClient` (the C core under asyncio, as the control
server uses it) and `SdkClient` (the betterproto stub over grpclib). The asyncio ones have a
loop in a thread of their own. Requests are written as plain values and are encoded by the
client's own classes of its own generation; `CallError` is whatever status came back.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack
from typing import Any, Protocol, Self

# Tests start processes while channels are open; none of those uses a channel of its parent.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio

from dbos_actors import client as sdk
from dbos_actors.client import GRPCError, connect
from tests.support.contracts import contract

TIMEOUT_S = 20.0


class CallError(Exception):
    """A call that ended in a status other than OK."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Pending(Protocol):
    """A call under way."""

    def done(self) -> bool: ...

    def result(self) -> Any:
        """Wait for the response. Raises `CallError`."""
        ...


class Client:
    """What every client here can do. Closed at the end of a ``with`` block."""

    generation: str

    def start(self, method: str, /, *, timeout_s: float = TIMEOUT_S, **fields: Any) -> Pending:
        """Send a call and return at once."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def call(self, method: str, /, *, timeout_s: float = TIMEOUT_S, **fields: Any) -> Any:
        """Send a call and return its response. Raises `CallError`."""
        return self.start(method, timeout_s=timeout_s, **fields).result()

    def call_many(
        self, method: str, requests: Iterable[Mapping[str, Any]], *, in_flight: int = 500
    ) -> list[Any]:
        """Send many calls, up to ``in_flight`` at once; responses or errors in their order."""
        outcomes: list[Any] = []
        pending: list[Pending] = []
        for fields in requests:
            pending.append(self.start(method, **fields))
            if len(pending) >= in_flight:
                outcomes += map(outcome_of, pending)
                pending = []
        return outcomes + [outcome_of(one) for one in pending]

    def request(self, method: str, fields: Mapping[str, Any]) -> Any:
        """A request in this generation's message class."""
        return contract(self.generation).message(f"{method}Request")(**fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def outcome_of(pending: Pending) -> Any:
    """The response of a call, or its `CallError`."""
    try:
        return pending.result()
    except CallError as error:
        return error


class _GrpcioPending:
    def __init__(self, future: Any) -> None:
        self._future = future

    def done(self) -> bool:
        return bool(self._future.done())

    def result(self) -> Any:
        try:
            return self._future.result()
        except grpc.RpcError as error:
            raise CallError(error.code().name, error.details()) from error


class GrpcioClient(Client):
    """Blocking grpcio with the messages of a generation, and perhaps a token."""

    def __init__(
        self, address: str, generation: str = "today", *, token: str | None = None
    ) -> None:
        self.generation = generation
        self._metadata = None if token is None else [("authorization", f"Bearer {token}")]
        self._channel = grpc.insecure_channel(address)
        self._calls: dict[str, Any] = {}

    def start(self, method: str, /, *, timeout_s: float = TIMEOUT_S, **fields: Any) -> Pending:
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = _unary_call(self._channel, self.generation, method)
        request = self.request(method, fields)
        return _GrpcioPending(call.future(request, timeout=timeout_s, metadata=self._metadata))

    def call_raw(self, path: str, request: bytes) -> bytes:
        """Send bytes that need not be a message. Raises `CallError`."""
        call = self._channel.unary_unary(path)
        response: bytes = _GrpcioPending(call.future(request, timeout=TIMEOUT_S)).result()
        return response

    def close(self) -> None:
        self._channel.close()


class _LoopThread:
    """An asyncio loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncio client")
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class AioClient(Client):
    """``grpc.aio`` with the messages of a generation."""

    def __init__(self, address: str, generation: str = "today") -> None:
        self.generation = generation
        self._thread = _LoopThread()
        self._channel = self._thread.start(self._open(address)).result()
        self._calls: dict[str, Any] = {}

    async def _open(self, address: str) -> Any:
        return grpc.aio.insecure_channel(address)

    def start(self, method: str, /, *, timeout_s: float = TIMEOUT_S, **fields: Any) -> Pending:
        return self._thread.start(self._call(method, self.request(method, fields), timeout_s))

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = _unary_call(self._channel, self.generation, method)
        try:
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallError(error.code().name, error.details() or "") from error

    def close(self) -> None:
        self._thread.start(self._channel.close()).result()
        self._thread.close()


class SdkClient(Client):
    """The project's SDK: the betterproto stub over grpclib."""

    generation = "today"

    def __init__(self, address: str) -> None:
        self._thread = _LoopThread()
        self._stack = AsyncExitStack()
        self._stub = self._thread.start(self._stack.enter_async_context(connect(address))).result()

    def start(self, method: str, /, *, timeout_s: float = TIMEOUT_S, **fields: Any) -> Pending:
        encoded = self.request(method, fields).SerializeToString()
        request = getattr(sdk, f"{method}Request")().parse(encoded)
        return self._thread.start(self._call(method, request, timeout_s))

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        call = getattr(self._stub, re.sub(r"(?<!^)([A-Z])", r"_\1", method).lower())
        try:
            return await call(request, timeout=timeout_s)
        except GRPCError as error:
            raise CallError(error.status.name, error.message or "") from error
        except TimeoutError as error:
            raise CallError("DEADLINE_EXCEEDED", "the client's own") from error

    def close(self) -> None:
        self._thread.start(self._stack.aclose()).result()
        self._thread.close()


def _unary_call(channel: Any, generation: str, method: str) -> Any:
    messages = contract(generation)
    return channel.unary_unary(
        f"/dbos.DBOS/{method}",
        request_serializer=messages.message(f"{method}Request").SerializeToString,
        response_deserializer=messages.message(f"{method}Response").FromString,
    )


KINDS = ("grpcio-a", "grpcio-b", "grpcio-today", "aio-b", "sdk")
"""Kinds of client, each with the generation of the contract it has."""


def open_client(kind: str, address: str) -> Client:
    """A client of one of the `KINDS`."""
    if kind == "sdk":
        return SdkClient(address)
    library, _, generation = kind.partition("-")
    return (AioClient if library == "aio" else GrpcioClient)(address, generation)
