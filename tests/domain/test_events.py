"""The form of an event."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.domain import events


def test_an_event_is_compact_json_with_four_members() -> None:
    made = events.event("agent.registered", "agent a registered", {"agent_id": "a"}, 1_700_000_000)
    assert made == (
        b'{"type":"agent.registered","message":"agent a registered",'
        b'"metadata":{"agent_id":"a"},"timestamp":1700000000}'
    )


@given(st.text(), st.dictionaries(st.text(), st.text()), st.integers(0, 2**62))
def test_any_text_survives_in_an_event(message: str, metadata: dict[str, str], at_s: int) -> None:
    assert json.loads(events.event("x", message, metadata, at_s)) == {
        "type": "x",
        "message": message,
        "metadata": metadata,
        "timestamp": at_s,
    }
