"""Watch: events on a stream, from a cursor or from now on.

The first response tells where the watch begins, each later one brings events or tells only how far
the log has come, so that a client always has a cursor at which it can go on. A response is sent
when the client has taken enough of those before; meanwhile the watch holds some numbers, and no
events (`actors/watching`).

The stream ends with OUT_OF_RANGE when the log no longer has what is behind the cursor, and with
UNAVAILABLE when the server drains or Redis is away. Both name the last cursor that was sent.
"""

from __future__ import annotations

from typing import Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.actors.watching.entries import Cursor, cursor_of
from dbos_actors.actors.watching.filters import Filter
from dbos_actors.actors.watching.watchers import Batch, Watcher, Watchers
from dbos_actors.api.messages import WatchRequest, WatchResponse
from dbos_actors.api.wire import encode_submessage
from dbos_actors.domain.events import check_types
from dbos_actors.domain.limits import Limits, check_text
from dbos_actors.errors import InvalidFieldError, RefusedError, UnavailableError
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.service.draining import DRAINING, Draining

PROGRESS_S: Final = 30
PROGRESS_S_MAX: Final = 3_600

_FELL_BEHIND: Final = b"\x18\x01"  # field 3, true


async def watch(
    stream: ServerStream[WatchRequest, WatchResponse],
    *,
    limits: Limits,
    watchers: Watchers,
    draining: Draining,
) -> None:
    """Serve one Watch stream, until its client goes or ``draining`` begins."""
    request = await stream.recv_message()
    if request is None:
        return
    try:
        wanted, cursor, progress_s = _checked(request, limits)
    except RefusedError as error:
        raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from error
    watcher = await watchers.join(wanted, cursor)
    sent = _Sent(watcher.cursor)
    try:
        with draining.begun.until():
            await stream.send_message(_encoded([], watcher.cursor))
            await _send(stream, watcher, sent, progress_s)
    except UnavailableError as error:
        raise UnavailableError(f"{error}: {_where(sent)}") from error
    finally:
        watchers.leave(watcher)
    raise UnavailableError(f"{DRAINING}: {_where(sent)}")


class _Sent:
    """How far the client has been told of."""

    __slots__ = ("cursor",)

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor


async def _send(
    stream: ServerStream[WatchRequest, WatchResponse],
    watcher: Watcher,
    sent: _Sent,
    progress_s: float,
) -> None:
    while True:
        batch = await watcher.next(progress_s)
        await stream.send_message(_response(batch))
        sent.cursor = batch.cursor
        del batch  # or its events would stay while it waits


def _response(batch: Batch) -> bytes:
    encoded = _encoded(batch.events, batch.cursor)
    return encoded + _FELL_BEHIND if batch.fell_behind else encoded


def _encoded(events: list[bytes], cursor: Cursor) -> bytes:
    return b"".join((*events, encode_submessage(2, cursor.text.encode())))


def _where(sent: _Sent) -> str:
    return f"watch again from cursor {sent.cursor.text}"


def _checked(request: WatchRequest, limits: Limits) -> tuple[Filter, Cursor | None, float]:
    """The filter, where to begin (None: now) and the time between responses, in seconds.

    Raises `RefusedError`.
    """
    check_text("agent_id", request.agent_id, limits.id_bytes)
    check_text("module_name", request.module_name, limits.name_bytes)
    check_text("request_id", request.request_id, limits.id_bytes)
    check_types("types", request.types)
    progress_s = request.progress_seconds or PROGRESS_S
    if not 1 <= progress_s <= PROGRESS_S_MAX:
        raise InvalidFieldError("progress_seconds", f"must be from 0 to {PROGRESS_S_MAX}")
    wanted = Filter(
        request.agent_id, request.module_name, request.request_id, frozenset(request.types)
    )
    return wanted, cursor_of(request.cursor) if request.cursor else None, float(progress_s)
