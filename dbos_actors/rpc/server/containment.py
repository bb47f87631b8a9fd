"""How an error of user code is kept to the call that it belongs to.

Handlers, interceptors and observers run in tasks that serve other calls too. An error of theirs may
fail one call and no more. Two kinds of exceptions are passed on: the cancellation of Trio's scopes,
and what ends the process. `asyncio.CancelledError` is neither of them, although it is not a
subclass of `Exception`: under Trio it means that somebody's asyncio code has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import trio
from grpclib.const import Status

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger

log = get_logger(__name__)

Observer: TypeAlias = Callable[[Status | None], None]
"""Called once with the status of a call; None if its client had gone."""

PASSING: Final = (trio.Cancelled, KeyboardInterrupt, SystemExit, GeneratorExit)


def split_failure(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """The part of an error that has to go on, and the part that only fails its call."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(PASSING)
    return (error, None) if isinstance(error, PASSING) else (None, error)


def chained(earlier: Observer | None, later: Observer) -> Observer:
    """One observer for two; the later one is called even if the earlier one raises."""
    if earlier is None:
        return later

    def both(status: Status | None) -> None:
        try:
            earlier(status)
        finally:
            later(status)

    return both


def tell(call: Any, status: Status | None) -> None:
    """Tell a call's observer how the call has ended; whatever it raises is only logged."""
    try:
        call.observer(status)
    except PASSING:
        raise
    except BaseException:  # noqa: BLE001 - logged, and the failure of its call alone
        log_limited(log.exception, "an observer of a call's end failed", path=call.path)
