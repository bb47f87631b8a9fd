"""Clients that call every method of the contract, streams included, with a token."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpclib.exceptions import StreamTerminatedError

from dbos_actors import client as sdk
from dbos_actors.api import messages

SERVICE: Final = messages.DESCRIPTOR.services_by_name["DBOS"]
TIMEOUT_S: Final = 20.0

POOL: Final = ("", "a", "b", "m", "run", "result", "task", "completed", "dead", "due")
"""What random requests name; most of it exists."""


class Outcome(NamedTuple):
    """How a call ended."""

    status: str
    message: str


def bearer(token: str) -> list[tuple[str, str]]:
    """The metadata of a call with a token."""
    return [("authorization", f"Bearer {token}")]


async def call_aio(
    channel: grpc.aio.Channel, method: Any, token: str, bodies: Sequence[bytes] = (b"",)
) -> Outcome:
    """Call a method with ``grpc.aio``; a stream of responses is read until its first one.

    If a stream has ended before its first message is written, ``grpc.aio`` may forget the status
    and say "Internal error from Core", whatever server it talks to. Then the call is made again.
    """
    outcome = await _call_aio(channel, method, token, bodies)
    while method.client_streaming and outcome.message == "Internal error from Core":
        outcome = await _call_aio(channel, method, token, bodies)
    return outcome


async def _call_aio(
    channel: grpc.aio.Channel, method: Any, token: str, bodies: Sequence[bytes]
) -> Outcome:
    path = f"/{SERVICE.full_name}/{method.name}"
    kind = "stream" if method.client_streaming else "unary"
    answers = "stream" if method.server_streaming else "unary"
    options = {"timeout": TIMEOUT_S, "metadata": bearer(token)}
    request = () if method.client_streaming else (bodies[0],)
    call = getattr(channel, f"{kind}_{answers}")(path)(*request, **options)
    writing = asyncio.create_task(_write(call, bodies)) if method.client_streaming else None
    try:
        if method.server_streaming:
            await asyncio.wait_for(call.read(), 0.5)
            call.cancel()
        else:
            await call
    except TimeoutError:  # a stream that has nothing to say: it was let in
        call.cancel()
    except grpc.aio.AioRpcError as error:
        return Outcome(error.code().name, error.details() or "")
    finally:
        if writing is not None:
            await writing
    return Outcome("OK", "")


async def _write(call: Any, bodies: Sequence[bytes]) -> None:
    """Send the messages of a stream. Whoever reads learns how it ends."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
        for body in bodies:
            await call.write(body)
        await call.done_writing()


async def call_sdk(stub: sdk.DbosStub, method: Any) -> Outcome:
    """Call a method with the SDK's stub, which has the token."""
    name = re.sub(r"(?<!^)([A-Z])", r"_\1", method.name).lower()
    request = getattr(sdk, method.input_type.name)()

    async def requests() -> AsyncIterator[Any]:
        yield request

    call = getattr(stub, name)(requests() if method.client_streaming else request)
    try:
        if method.server_streaming:
            with suppress(StopAsyncIteration):
                await asyncio.wait_for(anext(call), 0.5)
            await call.aclose()
        else:
            await call
    except TimeoutError:
        pass
    except sdk.GRPCError as error:
        return Outcome(error.status.name, error.message or "")
    except StreamTerminatedError as error:
        return Outcome("TERMINATED", str(error))
    return Outcome("OK", "")


def random_message(descriptor: Any, choose: random.Random) -> Message:
    """A request whose fields hold what exists in the store, or defaults."""
    message: Message = getattr(messages, descriptor.full_name.removeprefix("dbos."))()
    fill(message, choose)
    return message


def fill(message: Message, choose: random.Random) -> None:
    """Set about half of the fields at random."""
    for field in message.DESCRIPTOR.fields:
        if choose.random() < 0.4:
            continue
        present = getattr(message, field.name)
        if field.message_type is None:
            value = _scalar(field, choose)
            if hasattr(present, "append"):
                present.append(value)
            else:
                setattr(message, field.name, value)
        elif field.message_type.GetOptions().map_entry:
            present["key"] = "value"
        elif isinstance(present, Message):
            fill(present, choose)


def _scalar(field: Any, choose: random.Random) -> Any:
    match field.cpp_type:
        case field.CPPTYPE_STRING:
            text = choose.choice(POOL)
            return text.encode() if field.type == field.TYPE_BYTES else text
        case field.CPPTYPE_BOOL:
            return choose.random() < 0.5
        case _:
            return choose.choice((0, 1, 2, 60))
