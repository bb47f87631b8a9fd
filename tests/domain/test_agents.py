"""What heartbeats, silence and deletion make of an agent's record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.api.messages import Agent
from dbos_actors.domain import agents
from dbos_actors.domain.times import AHEAD_S_MAX
from dbos_actors.errors import InvalidFieldError


def heartbeat(current: Agent | None, reported: Agent, *, now_s: int) -> agents.AgentUpdate:
    """What a copy of ``reported`` makes of a record."""
    sent = Agent()
    sent.CopyFrom(reported)
    known = None if current is None else agents.numbers_of(current)
    return agents.heartbeat(known, sent, now_s=now_s)


def event_of(update: agents.AgentUpdate) -> dict[str, Any]:
    assert update.event is not None
    decoded: dict[str, Any] = json.loads(update.event)
    return decoded


def after(heartbeats: Sequence[Agent], *, now_s: int = 1000) -> Agent:
    record: Agent | None = None
    for reported in heartbeats:
        record = heartbeat(record, reported, now_s=now_s).record
    assert record is not None
    return record


def test_the_first_heartbeat_registers_the_agent() -> None:
    update = heartbeat(None, Agent(id="a", hostname="h", alive=True), now_s=1000)
    assert update.record == Agent(id="a", hostname="h", alive=True, first_seen=1000, last_seen=1000)
    assert event_of(update) == {
        "type": "agent.registered",
        "message": "agent a registered",
        "metadata": {"agent_id": "a", "hostname": "h", "last_seen": "1000"},
        "timestamp": 1000,
    }


def test_a_heartbeat_that_changes_nothing_of_note_makes_no_event() -> None:
    first = heartbeat(None, Agent(id="a", alive=True), now_s=1000).record
    update = heartbeat(
        first, Agent(id="a", hostname="new", alive=True, config={"k": "v"}), now_s=1030
    )
    assert update.event is None
    assert update.record.last_seen == 1030


def test_a_restarted_control_server_does_not_reset_what_is_known_of_an_agent() -> None:
    # Regression: the predecessor stored every heartbeat as it came.
    before = Agent(id="a", alive=True, first_seen=500, last_seen=900, total_heartbeats=40)
    restarted = Agent(id="a", alive=True, first_seen=950, last_seen=950, total_heartbeats=1)
    record = after([before, restarted])
    assert (record.first_seen, record.last_seen, record.total_heartbeats) == (500, 950, 40)


def test_a_client_that_sends_no_times_and_no_count_loses_none() -> None:
    before = Agent(id="a", alive=True, first_seen=500, last_seen=900, total_heartbeats=40)
    record = after([before, Agent(id="a", alive=True)])
    assert (record.first_seen, record.last_seen, record.total_heartbeats) == (500, 1000, 40)


def test_an_earlier_first_seen_and_a_larger_count_are_taken_over() -> None:
    record = after(
        [
            Agent(id="a", first_seen=500, total_heartbeats=3),
            Agent(id="a", first_seen=400, total_heartbeats=4),
        ]
    )
    assert (record.first_seen, record.total_heartbeats) == (400, 4)


def test_last_seen_never_goes_back() -> None:
    record = after([Agent(id="a", last_seen=900), Agent(id="a", last_seen=800)])
    assert record.last_seen == 900
    assert heartbeat(record, Agent(id="a"), now_s=700).record.last_seen == 900


def test_a_last_seen_that_is_ahead_of_the_clock_means_now() -> None:
    assert after([Agent(id="a", last_seen=1000 + AHEAD_S_MAX)]).last_seen == 1000


def test_a_last_seen_more_than_a_day_ahead_is_refused_by_name() -> None:
    with pytest.raises(InvalidFieldError, match=r"^agent\.last_seen is 1700000000000, which"):
        heartbeat(None, Agent(id="a", last_seen=1_700_000_000_000), now_s=1_700_000_000)


def test_a_last_seen_from_the_far_future_that_was_recorded_once_does_not_stay() -> None:
    record = Agent(id="a", last_seen=1_700_000_000_000)
    assert heartbeat(record, Agent(id="a"), now_s=1_700_000_000).record.last_seen == (1_700_000_000)


def test_hostname_and_config_are_replaced_as_a_whole() -> None:
    record = after(
        [
            Agent(id="a", hostname="old", config={"gone": "1", "kept": "1"}),
            Agent(id="a", hostname="new", config={"kept": "2"}),
        ]
    )
    assert record.hostname == "new"
    assert dict(record.config) == {"kept": "2"}


def test_negative_times_and_counts_count_as_not_set() -> None:
    first = after([Agent(id="a", first_seen=-1, last_seen=-1, total_heartbeats=-1)])
    assert (first.first_seen, first.last_seen, first.total_heartbeats) == (1000, 1000, 0)
    second = heartbeat(first, Agent(id="a", first_seen=-5), now_s=1001).record
    assert second.first_seen == 1000


def test_an_agent_without_heartbeats_is_not_alive_until_its_next_heartbeat() -> None:
    # Regression: the predecessor's alive never became false.
    alive = after([Agent(id="a", hostname="h", alive=True, last_seen=900, total_heartbeats=7)])
    lapsed = agents.lapse(alive, now_s=2000)
    assert not lapsed.record.alive
    assert lapsed.record.last_seen == 900
    assert event_of(lapsed)["type"] == "agent.lapsed"
    assert event_of(lapsed)["metadata"]["last_seen"] == "900"
    assert alive.alive, "the record in memory changes only when the turn is committed"

    back = heartbeat(lapsed.record, Agent(id="a", alive=True), now_s=2100)
    assert back.record.alive
    assert event_of(back)["type"] == "agent.alive"
    assert (back.record.last_seen, back.record.total_heartbeats) == (2100, 7)


def test_an_agent_without_heartbeats_is_marked_not_alive_once() -> None:
    lapsed = agents.lapse(after([Agent(id="a", alive=True)]), now_s=2000).record
    again = agents.lapse(lapsed, now_s=3000)
    assert again.record is lapsed
    assert again.event is None


def test_a_sender_may_say_that_the_agent_is_offline() -> None:
    alive = after([Agent(id="a", alive=True)])
    update = heartbeat(alive, Agent(id="a", alive=False), now_s=1000)
    assert not update.record.alive
    assert event_of(update)["type"] == "agent.offline"


def test_an_agent_registered_as_offline_makes_one_event() -> None:
    update = heartbeat(None, Agent(id="a"), now_s=1000)
    assert not update.record.alive
    assert event_of(update)["type"] == "agent.registered"


def test_a_deletion_makes_an_event() -> None:
    assert json.loads(agents.deleted("a", now_s=1000)) == {
        "type": "agent.deleted",
        "message": "agent a was deleted",
        "metadata": {"agent_id": "a"},
        "timestamp": 1000,
    }


heartbeats = st.builds(
    Agent,
    id=st.just("a"),
    hostname=st.text(max_size=5),
    alive=st.booleans(),
    first_seen=st.integers(1, 2000),
    last_seen=st.integers(1, 2000),
    total_heartbeats=st.integers(0, 2**31 - 1),
    config=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
)


@given(st.lists(heartbeats, min_size=1), st.randoms(use_true_random=False))
def test_heartbeats_may_arrive_in_any_order_and_more_than_once(
    sent: list[Agent], random: Any
) -> None:
    arrived = sent + random.sample(sent, random.randint(0, len(sent)))
    random.shuffle(arrived)
    record = after(arrived)
    assert record.first_seen == min(reported.first_seen for reported in sent)
    assert record.last_seen == min(max(reported.last_seen for reported in sent), 1000)
    assert record.total_heartbeats == max(reported.total_heartbeats for reported in sent)
    assert record.hostname == arrived[-1].hostname
    assert record.config == arrived[-1].config
    assert record.alive == arrived[-1].alive


@given(heartbeats)
def test_a_heartbeat_that_is_refused_is_as_it_was_sent(reported: Agent) -> None:
    reported.last_seen = 1_700_000_000_000
    copy = Agent()
    copy.CopyFrom(reported)
    with pytest.raises(InvalidFieldError):
        agents.heartbeat(None, reported, now_s=1000)
    assert reported == copy
