"""What is kept of a measurement result, and what counts as the same one again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.api.messages import GetResultResponse, MeasurementResult
from dbos_actors.domain import results
from dbos_actors.domain.times import AHEAD_S_MAX
from dbos_actors.errors import InvalidFieldError


def a_result(**fields: object) -> MeasurementResult:
    result = MeasurementResult(
        id="r", agent_id="a", module_name="ping", data=b"\x00\xffdata", timestamp=90
    )
    for name, value in fields.items():
        setattr(result, name, value)
    return result


def test_the_server_sets_when_and_where_it_received_a_result() -> None:
    record = results.accept(a_result(), now_s=100, server_id="server-1")
    assert MeasurementResult.FromString(record) == a_result(
        received_at=100, dbos_server_id="server-1"
    )


def test_the_time_and_server_that_a_relay_has_set_are_kept() -> None:
    relayed = a_result(received_at=95, dbos_server_id="relay", ingest_source="nats")
    record = results.accept(relayed, now_s=100, server_id="server-1")
    assert record == relayed.SerializeToString()
    assert MeasurementResult.FromString(record).received_at == 95


def test_a_result_received_a_little_ahead_of_the_clock_was_received_now() -> None:
    record = results.accept(a_result(received_at=100 + AHEAD_S_MAX), now_s=100, server_id="s")
    assert MeasurementResult.FromString(record).received_at == 100


@pytest.mark.parametrize("received_at", [100 + AHEAD_S_MAX + 1, 100_000_000, 2**53])
def test_a_result_received_more_than_a_day_ahead_is_refused_by_name(received_at: int) -> None:
    with pytest.raises(InvalidFieldError, match=rf"^result\.received_at is {received_at}, which"):
        results.accept(a_result(received_at=received_at), now_s=100, server_id="s")


def test_a_result_without_a_time_of_measurement_is_given_none() -> None:
    record = results.accept(a_result(timestamp=0), now_s=100, server_id="s")
    assert MeasurementResult.FromString(record).timestamp == 0


def test_accepting_again_changes_nothing_more() -> None:
    sent = a_result()
    first = results.accept(sent, now_s=100, server_id="s")
    assert results.accept(sent, now_s=200, server_id="t") == first


times = st.integers(0, 2**53)


@given(
    st.builds(
        MeasurementResult,
        id=st.text(),
        agent_id=st.text(),
        module_name=st.text(),
        data=st.binary(),
        timestamp=st.integers(-(2**63), 2**63 - 1),
        received_at=times,
        agent_start_time=times,
        agent_runtime_version=st.text(),
        module_revision=st.text(),
        dbos_server_id=st.text(),
        ingest_source=st.text(),
    ),
    times,
    st.text(),
)
def test_a_record_is_the_message_with_two_fields_filled_in(
    sent: MeasurementResult, now_s: int, server_id: str
) -> None:
    expected = MeasurementResult()
    expected.CopyFrom(sent)
    sent.received_at = min(sent.received_at, now_s + AHEAD_S_MAX)
    expected.received_at = min(sent.received_at, now_s) or now_s
    expected.dbos_server_id = sent.dbos_server_id or server_id
    record = results.accept(sent, now_s=now_s, server_id=server_id)
    assert MeasurementResult.FromString(record) == expected
    assert sent == expected
    assert results.same_measurement(record, sent)


def test_a_record_can_be_answered_with_as_it_is() -> None:
    record = results.accept(a_result(), now_s=100, server_id="s")
    answer = b"\x08\x01\x12" + bytes([len(record)]) + record  # found = 1, result = 2
    assert GetResultResponse.FromString(answer) == GetResultResponse(
        found=True, result=MeasurementResult.FromString(record)
    )


@pytest.mark.parametrize(
    "difference",
    [
        {"received_at": 999},
        {"dbos_server_id": "elsewhere"},
        {"ingest_source": "retry"},
        {"timestamp": 91},
        {"agent_start_time": 5},
        {"agent_runtime_version": "2"},
        {"module_revision": "2"},
    ],
)
def test_a_repeat_that_came_another_way_is_the_same_measurement(
    difference: dict[str, object],
) -> None:
    record = results.accept(a_result(), now_s=100, server_id="s")
    assert results.same_measurement(record, a_result(**difference))


@pytest.mark.parametrize(
    "difference", [{"data": b"other"}, {"data": b""}, {"module_name": "traceroute"}]
)
def test_a_repeat_with_other_content_is_another_measurement(difference: dict[str, object]) -> None:
    record = results.accept(a_result(), now_s=100, server_id="s")
    assert not results.same_measurement(record, a_result(**difference))


def test_a_conflict_makes_an_event_that_names_the_result() -> None:
    conflict = json.loads(results.conflict(a_result(ingest_source="nats"), now_s=100))
    assert conflict == {
        "type": "result.conflict",
        "message": "result r of agent a came again with different data; the first is kept",
        "metadata": {
            "agent_id": "a",
            "result_id": "r",
            "module_name": "ping",
            "data_bytes": "6",
            "ingest_source": "nats",
        },
        "timestamp": 100,
    }


def test_a_new_result_can_make_an_event() -> None:
    stored = json.loads(results.stored(a_result(), now_s=100))
    assert stored["type"] == "result.stored"
    assert stored["metadata"]["result_id"] == "r"
