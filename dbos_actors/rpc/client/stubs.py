"""What betterproto's stubs need to run on Trio.

Methods with a single response run on a channel as they are. `TrioStub` replaces the others. It
sends the requests of a stream in a task of their own, for which betterproto uses asyncio. And it
cancels a call when the loop over its responses is left early::

    class GreeterStub(TrioStub, greeter.GreeterStub): ...

A bidirectional method of a stub without it is refused when it is called: asyncio's task for its
requests would never run, and the call would wait for ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import CodeType
from typing import Any, Self

import trio
from grpclib.const import Cardinality
from grpclib.exceptions import ProtocolError

from dbos_actors.rpc.client.stream import ClientStream


def refuse_asyncio_stub(caller: CodeType) -> None:
    """Refuse a bidirectional call made by code that sends its requests in a task of asyncio.

    ``caller`` is the function that makes the call. Raises `ProtocolError`, which names what to use.
    """
    if "ensure_future" in caller.co_names:
        raise ProtocolError(
            f"{caller.co_name} sends the requests of a bidirectional call in a task of asyncio,"
            f" which does not run under Trio: put {__name__}.TrioStub before the stub in the bases"
            " of a class, and use that"
        )


class TrioStub:
    """Put before a stub that betterproto has generated, in the bases of a class."""

    channel: Any
    timeout: float | None
    deadline: Any
    metadata: Any

    def _unary_stream(
        self, route: str, request: Any, response_type: type, **options: Any
    ) -> Responses:
        """The responses to a request. Cancelled when dropped, as by leaving a loop over them."""

        async def begin(stream: ClientStream[Any, Any]) -> None:
            await stream.send_message(request, end=True)

        stream = self._open(
            route, Cardinality.UNARY_STREAM, (type(request), response_type), options
        )
        return Responses(stream, begin)

    def _stream_stream(
        self,
        route: str,
        request_iterator: Iterable[Any],
        request_type: type,
        response_type: type,
        **options: Any,
    ) -> Responses:
        """The responses to a streaming request, as it goes on being sent.

        What the iterable of requests, async or not, raises is raised here. Cancelled when dropped.
        """

        async def begin(stream: ClientStream[Any, Any]) -> None:
            await stream.send_request()
            stream.send_from(request_iterator)

        types = (request_type, response_type)
        return Responses(self._open(route, Cardinality.STREAM_STREAM, types, options), begin)

    def _open(
        self,
        route: str,
        cardinality: Cardinality,
        types: tuple[type, type],
        options: dict[str, Any],
    ) -> ClientStream[Any, Any]:
        for name in ("timeout", "deadline", "metadata"):
            if options.get(name) is None:
                options[name] = getattr(self, name)
        stream: ClientStream[Any, Any] = self.channel.request(route, cardinality, *types, **options)
        return stream


class Responses:
    """A call's responses, to be iterated over.

    Not a generator: betterproto iterates over it inside one of its own, which does not close what
    is inside when it is closed itself.
    """

    def __init__(
        self,
        stream: ClientStream[Any, Any],
        begin: Callable[[ClientStream[Any, Any]], Awaitable[None]],
    ) -> None:
        self._stream = stream
        self._begin: Callable[[ClientStream[Any, Any]], Awaitable[None]] | None = begin

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        stream = self._stream
        try:
            if self._begin is not None:
                begin, self._begin = self._begin, None
                await begin(stream)
            message = await stream.recv_message()
        except BaseException:
            stream.abandon()
            raise
        if message is None:
            await stream.__aexit__(None, None, None)
            raise StopAsyncIteration
        return message

    def __del__(self) -> None:
        if trio.lowlevel.in_trio_run():
            self._stream.abandon()
