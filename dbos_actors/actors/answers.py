"""How actors of either kind answer a read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dbos_actors.api.messages import GetAgentResponse
from dbos_actors.api.wire import encode_submessage

_FOUND: Final = GetAgentResponse(found=True).SerializeToString()


def found(message: bytes) -> bytes:
    """A Get response that carries ``message``; the same bytes for every Get method."""
    return _FOUND + encode_submessage(2, message)


def guarded(call: Any, callback: Callable[[Any], None]) -> Callable[[Any], None]:
    """``callback``, whose error is its call's and not the store's that runs it."""

    def run(argument: Any) -> None:
        try:
            callback(argument)
        except Exception as error:  # noqa: BLE001 - the call's outcome, whatever it is
            call.fail(error)

    return run
