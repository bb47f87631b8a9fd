"""What every call of the SDK's stubs has besides its messages: retries, and errors of one family.

`CheckedStub` stands before a stub that betterproto has generated, in the bases of a class; it works
on asyncio and on Trio.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import anyio
from grpclib.client import Channel
from grpclib.metadata import Deadline

from dbos_actors.api.sdk.dbos import LeaseTasksRequest
from dbos_actors.backoff import Backoff, BackoffPolicy
from dbos_actors.client.errors import FieldError, UnavailableError, call_error

RETRY_PAUSES: Final = BackoffPolicy(first_s=0.05, factor=2.0, max_s=2.0, jitter=0.5)
"""Between two copies of a call. A server that is restarted is back within seconds, and the last
pauses are such that thousands of clients do not all come back in one moment."""

RECONNECT_PAUSES: Final = BackoffPolicy(first_s=0.1, factor=2.0, max_s=5.0, jitter=0.5)
"""Between two streams, of which the first one has ended."""

STREAM_S: Final = 86_400.0 * 365
"""The deadline of a stream, which is made again when it passes. None would mean the stub's own."""

WITHOUT_DEADLINE_S: Final = 30.0
"""For how long a call without a deadline is tried again."""

_RANDOM: Final = random.Random()  # noqa: S311 - jitter

# What betterproto raises while it encodes a value of the wrong type.
_ENCODING_ERRORS: Final = (AssertionError, AttributeError, TypeError, ValueError)


class CheckedStub:
    """Makes unary calls again while the service is unavailable, and raises `ClientError`."""

    timeout: float | None
    deadline: Any
    retries: bool = True
    """Whether a call is made again, until its deadline, while the service is unavailable."""

    async def _unary_unary(
        self,
        route: str,
        request: Any,
        response_type: type,
        *,
        timeout: float | None = None,
        deadline: Any = None,
        metadata: Any = None,
    ) -> Any:
        if isinstance(request, LeaseTasksRequest) and self.retries and not request.request_key:
            # With a key, a copy of the request leases the same tasks and not others.
            request = dataclasses.replace(request, request_key=uuid.uuid4().hex)
        if deadline is None:
            timeout = self.timeout if timeout is None else timeout
            deadline = self.deadline if timeout is None else Deadline.from_timeout(timeout)
        given_up_s = time.monotonic() + (
            WITHOUT_DEADLINE_S if deadline is None else deadline.time_remaining()
        )
        backoff = Backoff(RETRY_PAUSES, _RANDOM)
        while True:
            try:
                with _without_cancellation_left():
                    return await super()._unary_unary(  # type: ignore[misc]
                        route, request, response_type, deadline=deadline, metadata=metadata
                    )
            except Exception as error:
                failure = call_error(error)
                if failure is None:
                    encoded(request)  # the field that cannot be encoded has a better error
                    raise
                pause_s = backoff.next_s()
                again = self.retries and isinstance(failure, UnavailableError)
                if not again or time.monotonic() + pause_s >= given_up_s:
                    raise failure from error
            await anyio.sleep(pause_s)

    def _unary_stream(self, *arguments: Any, **options: Any) -> CheckedResponses:
        return CheckedResponses(super()._unary_stream(*arguments, **options))  # type: ignore[misc]

    def _stream_stream(self, *arguments: Any, **options: Any) -> CheckedResponses:
        return CheckedResponses(super()._stream_stream(*arguments, **options))  # type: ignore[misc]


class CheckedResponses:
    """A call's responses, to be iterated over; what ends them early is a `ClientError`."""

    def __init__(self, responses: AsyncIterator[Any]) -> None:
        self._responses = responses

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            with _without_cancellation_left():
                return await anext(self._responses)
        except StopAsyncIteration:
            raise
        except Exception as error:
            failure = call_error(error)
            if failure is None:
                raise
            raise failure from error


@contextmanager
def _without_cancellation_left() -> Iterator[None]:
    """Take back the cancellation by which grpclib interrupts the task of a call that fails.

    grpclib turns it into the call's error, but leaves the task marked as being cancelled, so that a
    cancel scope around it would take the error for a cancellation of its own. Does nothing on Trio.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    before = 0 if task is None else task.cancelling()
    try:
        yield
    except Exception:
        if task is not None and task.cancelling() > before:
            task.uncancel()
        raise


def leave_connection(stub: Any, reason: str) -> None:
    """Have the stub's next call made on a new connection. Calls on the present one fail."""
    if isinstance(stub.channel, Channel):
        stub.channel.close()  # grpclib connects again at the next call
    else:
        stub.channel.reconnect(reason)


def encoded(message: Any) -> bytes:
    """A message's bytes. Raises `FieldError`, naming the field, if a value has the wrong type."""
    try:
        return bytes(message)
    except _ENCODING_ERRORS as error:
        raise FieldError(_problem(message) or f"{type(message).__name__}: {error}") from None


def _problem(message: Any, path: str = "") -> str:
    """The first field that cannot be encoded, and what it holds."""
    path = path or type(message).__name__
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        name = f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            inner = _problem(value, name)
            if inner:
                return inner
            continue
        try:
            bytes(type(message)(**{field.name: value}))
        except _ENCODING_ERRORS:
            wanted = getattr(field.type, "__name__", None) or str(field.type)
            return f"{name} must be {wanted}, not {value!r:.80}"
    return ""
