"""Messages as JSON and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.cli.remote.records import RecordError, message_of, record_of
from dbos_actors.client import Agent, MeasurementResult, Task

texts = st.text(max_size=20)
whole_numbers = st.integers(-(1 << 63), (1 << 63) - 1)


@given(st.binary(max_size=40), texts, whole_numbers)
def test_a_result_comes_back_as_it_was(data: bytes, name: str, received_at: int) -> None:
    result = MeasurementResult(id=name, data=data, received_at=received_at)
    assert message_of(MeasurementResult, record_of(result)) == result


@given(st.dictionaries(texts, texts, max_size=4), st.booleans())
def test_an_agent_comes_back_as_it_was(config: dict[str, str], alive: bool) -> None:
    agent = Agent(id="a", config=config, alive=alive)
    assert message_of(Agent, record_of(agent)) == agent


def test_bytes_are_text_if_they_can_be() -> None:
    assert record_of(Task(payload=b'{"a": 1}'))["payload"] == '{"a": 1}'
    assert record_of(Task(payload=b"\xff"))["payload_base64"] == "/w=="


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"id": 1}, "id must be text"),
        ({"nonsense": 1}, "Task has no field 'nonsense'"),
        ({"scheduled_at": "soon"}, "scheduled_at must be a whole number"),
        ({"scheduled_at": True}, "scheduled_at must be a whole number"),
        ({"scheduled_at": 1 << 63}, "scheduled_at must fit into 64 bits"),
        ({"payload": 5}, "payload must be text"),
        ({"payload_base64": "*"}, "payload_base64 is not base64"),
        ({"payload_base64": 5}, "payload_base64 is not base64"),
        ({"id_base64": "AA=="}, "Task has no field 'id_base64'"),
    ],
)
def test_what_is_no_record_names_the_field(record: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecordError, match=problem):
        message_of(Task, record)


def test_a_map_holds_texts_only() -> None:
    with pytest.raises(RecordError, match="config must be an object whose values are text"):
        message_of(Agent, {"config": {"a": 1}})
