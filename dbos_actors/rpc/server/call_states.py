"""The states of a call of a grpclib service, in one table.

A call begins in RECEIVING. The table says what each event makes of it:

    state       START     ANSWER      END        RETURN
    RECEIVING   RUNNING               FINISHED
    RUNNING               ANSWERING   OVER
    ANSWERING                         OVER
    OVER                                         FINISHED

START: the handler is started. ANSWER: the response headers are queued. END: the status is queued,
the stream is reset, or the client has gone. RETURN: the handler has returned. An empty place means
that the event cannot happen in that state; if it does, that is an error of the transport.

A handler may outlive its call, for example when the client has gone while the handler shields
itself from cancellation. Such a call stays OVER, and counts as live, until the handler returns.

A unary call has no such table: no task belongs to it, and it is answered once or not yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, auto
from typing import Final


class CallState(IntEnum):
    """How far a call has come. States that are listed later are reached later."""

    RECEIVING = auto()
    """No handler was started: a handler that takes one message is started once that is whole."""
    RUNNING = auto()
    """The handler runs. Nothing of the answer is queued."""
    ANSWERING = auto()
    """The handler runs. The response headers are queued."""
    OVER = auto()
    """The client gets no more, but the handler has not returned."""
    FINISHED = auto()
    """The client gets no more, and no handler runs."""


class CallEvent(Enum):
    """What moves a call from one state to the next."""

    START = auto()
    ANSWER = auto()
    END = auto()
    RETURN = auto()


_TABLE: Final[Mapping[tuple[CallState, CallEvent], CallState]] = {
    (CallState.RECEIVING, CallEvent.START): CallState.RUNNING,
    (CallState.RECEIVING, CallEvent.END): CallState.FINISHED,
    (CallState.RUNNING, CallEvent.ANSWER): CallState.ANSWERING,
    (CallState.RUNNING, CallEvent.END): CallState.OVER,
    (CallState.ANSWERING, CallEvent.END): CallState.OVER,
    (CallState.OVER, CallEvent.RETURN): CallState.FINISHED,
}


class CallStateError(RuntimeError):
    """An event that cannot happen in the state of its call: an error of the transport."""

    def __init__(self, state: CallState, event: CallEvent) -> None:
        super().__init__(f"{event.name} cannot happen to a call that is {state.name}")
        self.state = state
        self.event = event


def next_state(state: CallState, event: CallEvent) -> CallState:
    """The state that an event leads to. Raises `CallStateError`."""
    try:
        return _TABLE[state, event]
    except KeyError:
        raise CallStateError(state, event) from None
