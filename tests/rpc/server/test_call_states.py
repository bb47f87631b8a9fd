"""The table of call states: every way through it ends, and what is not in it raises."""

from __future__ import annotations

import itertools

import pytest

from dbos_actors.rpc.server.call_states import CallEvent, CallState, CallStateError, next_state

POSSIBLE = {
    (CallState.RECEIVING, CallEvent.START): CallState.RUNNING,
    (CallState.RECEIVING, CallEvent.END): CallState.FINISHED,
    (CallState.RUNNING, CallEvent.ANSWER): CallState.ANSWERING,
    (CallState.RUNNING, CallEvent.END): CallState.OVER,
    (CallState.ANSWERING, CallEvent.END): CallState.OVER,
    (CallState.OVER, CallEvent.RETURN): CallState.FINISHED,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(CallState, CallEvent)))
def test_an_event_leads_to_the_state_of_the_table_or_raises(
    state: CallState, event: CallEvent
) -> None:
    expected = POSSIBLE.get((state, event))
    if expected is not None:
        assert next_state(state, event) is expected
        return
    with pytest.raises(CallStateError, match=f"{event.name} cannot happen .* {state.name}"):
        next_state(state, event)


def test_a_call_never_goes_back_to_an_earlier_state() -> None:
    assert all(after > before for (before, _), after in POSSIBLE.items())


def test_every_call_that_is_not_finished_can_still_finish() -> None:
    reached = {CallState.FINISHED}
    while more := {before for (before, _), after in POSSIBLE.items() if after in reached} - reached:
        reached |= more
    assert reached == set(CallState)
