"""SetModuleState, GetModuleState and ListModuleStates through real clients."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.support.clients import Client
from tests.support.servers import SteppedClock

NOW = 1_700_000_000
RANKS = {"created": 0, "started": 1, "running": 2, "completed": 3, "error": 3, "failed": 3}


def report(client: Client, state: str, **fields: Any) -> Any:
    values = {"agent_id": "a", "module_name": "ping", "request_id": "r", "state": state}
    return client.call("SetModuleState", state={**values, **fields})


def read(client: Client, request_id: str = "r", **fields: Any) -> Any:
    response = client.call("GetModuleState", request_id=request_id, **fields)
    assert response.found, response.error
    return response.state


def events(client: Client) -> list[dict[str, Any]]:
    return [json.loads(event) for event in client.call("GetEvents", limit=10_000).events]


# ------------------------------------------------------------------ every client


def test_a_run_is_reported_and_read_back_by_every_client(any_client: Client) -> None:
    for state in ("created", "started", "running"):
        assert report(any_client, state).success
    response = report(
        any_client,
        "error",
        error_message="no route",
        details={"hop": "3", "ü": "ß"},
        timestamp=1_600_000_000,
    )
    assert (response.success, response.error) == (True, "")

    state = read(any_client)
    assert (state.agent_id, state.module_name, state.request_id) == ("a", "ping", "r")
    assert (state.state, state.error_message) == ("error", "no route")
    assert dict(state.details) == {"hop": "3", "ü": "ß"}
    assert state.timestamp == 1_600_000_000
    if any_client.generation != "a":
        assert state.version == 4

    listed = any_client.call("ListModuleStates", agent_id="a").states
    assert [one.request_id for one in listed] == ["r"]
    assert listed[0] == state


def test_an_unknown_run_is_not_found_and_the_error_names_it(any_client: Client) -> None:
    response = any_client.call("GetModuleState", request_id="nothing")
    assert not response.found
    assert "nothing" in response.error
    assert not any_client.call("ListModuleStates", agent_id="a").states


def test_a_run_of_an_agent_that_never_registered_is_accepted(any_client: Client) -> None:
    assert report(any_client, "running").success
    assert not any_client.call("GetAgent", agent_id="a").found


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        ("agent_id", "state.agent_id is required"),
        ("module_name", "state.module_name is required"),
        ("state", "state.state is required"),
    ],
)
def test_an_empty_required_field_is_refused_in_band(
    any_client: Client, missing: str, error: str
) -> None:
    fields = {"agent_id": "a", "module_name": "ping", "request_id": "r", "state": "running"}
    response = any_client.call("SetModuleState", state={**fields, missing: ""})
    assert (response.success, response.error) == (False, error)
    assert not any_client.call("GetModuleState", request_id="r").found


def test_reads_without_their_id_are_refused_in_band(any_client: Client) -> None:
    response = any_client.call("GetModuleState")
    assert (response.found, response.error) == (False, "request_id is required")
    response = any_client.call("ListModuleStates")
    assert response.error == "agent_id is required"


# -------------------------------------------------------------------- transitions


def test_every_pair_of_states_is_judged_by_rank(client: Client) -> None:
    for was, to in itertools.product(RANKS, RANKS):
        run = f"{was}-{to}"
        assert report(client, was, request_id=run).success  # a run may begin in any state
        response = report(client, to, request_id=run)
        if was == to or RANKS[to] > RANKS[was]:
            assert response.success, (run, response.error)
            assert read(client, run).state == to
        else:
            assert response.error == f"invalid transition {was} -> {to}"
            assert not response.success
            assert read(client, run).state == was


def test_a_state_of_another_name_is_refused_for_a_run(client: Client) -> None:
    response = report(client, "sleeping")
    assert not response.success
    assert "sleeping" in response.error
    assert "running" in response.error  # it says what would do


def test_a_lost_report_does_not_block_the_outcome_and_a_late_one_does_not_undo_it(
    client: Client,
) -> None:
    assert report(client, "created").success
    assert report(client, "completed").success
    assert report(client, "running").error == "invalid transition completed -> running"
    assert read(client).state == "completed"


def test_the_same_unfinished_state_again_replaces_details_with_a_new_version_and_no_event(
    client: Client,
) -> None:
    report(client, "running", details={"a": "1", "b": "1"})
    report(client, "running", details={"a": "2"})
    state = read(client)
    assert (dict(state.details), state.version) == ({"a": "2"}, 2)
    assert len(events(client)) == 1


@pytest.mark.parametrize("version", [0, 1, 2, 3, 99])
def test_the_same_terminal_state_again_succeeds_and_changes_nothing_whatever_its_version(
    client: Client, version: int
) -> None:
    report(client, "running")
    report(client, "completed", details={"first": "yes"})
    before = read(client)
    response = report(client, "completed", details={"second": "yes"}, version=version)
    assert (response.success, response.error) == (True, "")
    assert read(client) == before
    assert len(events(client)) == 2


def test_a_run_keeps_the_module_of_its_first_report(client: Client) -> None:
    report(client, "created")
    assert not report(client, "running", module_name="dns").success
    assert report(client, "running", module_name="").success
    state = read(client)
    assert (state.module_name, state.state) == ("ping", "running")


def test_a_timestamp_of_zero_means_now_and_another_is_kept(client: Client) -> None:
    report(client, "running")
    assert read(client).timestamp == NOW
    report(client, "completed", timestamp=77)
    assert read(client).timestamp == 77


# ---------------------------------------------------------------------- versions


def test_versions_count_changes_from_one(client: Client) -> None:
    for expected, state in enumerate(("created", "started", "running", "running", "failed"), 1):
        report(client, state)
        assert read(client).version == expected


def test_a_version_must_be_the_next_one(client: Client) -> None:
    assert report(client, "created", version=2).error == "version conflict: expected 1, got 2"
    assert report(client, "created", version=1).success
    assert report(client, "started", version=2).success
    assert report(client, "running", version=2).error == "version conflict: expected 3, got 2"
    assert report(client, "running", version=4).error == "version conflict: expected 3, got 4"
    assert read(client).state == "started"
    assert report(client, "running", version=3).success


def test_the_current_version_with_the_same_content_is_a_retry(client: Client) -> None:
    report(client, "created")
    assert report(client, "running", version=2, details={"n": "1"}).success
    assert report(client, "running", version=2, details={"n": "1"}).success
    assert read(client).version == 2
    response = report(client, "running", version=2, details={"n": "2"})
    assert response.error == "version conflict: expected 3, got 2"


def test_of_concurrent_reports_with_one_version_exactly_one_wins(client: Client) -> None:
    report(client, "running")
    for version in range(2, 12):
        outcomes = client.call_many(
            "SetModuleState",
            (
                {
                    "state": {
                        "agent_id": "a",
                        "module_name": "ping",
                        "request_id": "r",
                        "state": "running",
                        "version": version,
                        "details": {"writer": str(writer)},
                    }
                }
                for writer in range(20)
            ),
        )
        winners = [writer for writer, outcome in enumerate(outcomes) if outcome.success]
        assert len(winners) == 1
        assert read(client).details["writer"] == str(winners[0])


# ------------------------------------------------------------- shared request ids


def test_two_agents_may_share_a_request_id(client: Client, clock: SteppedClock) -> None:
    report(client, "running", agent_id="one")
    clock.now_s += 1
    report(client, "completed", agent_id="two")
    assert read(client, agent_id="one").state == "running"
    assert read(client, agent_id="two").state == "completed"


def test_without_an_agent_the_run_last_changed_is_meant(
    any_client: Client, clock: SteppedClock
) -> None:
    report(any_client, "running", agent_id="one")
    clock.now_s += 1
    report(any_client, "running", agent_id="two")
    assert read(any_client).agent_id == "two"
    clock.now_s += 1
    report(any_client, "completed", agent_id="one")
    assert read(any_client).agent_id == "one"
    clock.now_s += 1
    report(any_client, "completed", agent_id="one")  # a repeat is no change ...
    report(any_client, "running", agent_id="one")  # ... nor is what is refused
    assert read(any_client).agent_id == "one"


def test_an_agent_without_such_a_run_is_not_found_though_another_has_one(client: Client) -> None:
    report(client, "running", agent_id="one")
    response = client.call("GetModuleState", request_id="r", agent_id="two")
    assert not response.found
    assert "two" in response.error


# --------------------------------------------------------------- the module itself


def test_a_report_without_a_request_id_is_about_the_module(any_client: Client) -> None:
    for state in ("running", "stopped", "created", "anything at all"):
        assert report(any_client, state, request_id="").success
    (state,) = any_client.call("ListModuleStates", agent_id="a").states
    assert (state.request_id, state.state) == ("", "anything at all")
    if any_client.generation != "a":
        assert state.version == 4


def test_a_module_and_a_run_of_that_name_do_not_meet(client: Client) -> None:
    report(client, "stopped", request_id="", module_name="ping")
    report(client, "running", request_id="ping", module_name="dns")
    states = client.call("ListModuleStates", agent_id="a").states
    assert sorted((s.request_id, s.module_name, s.state) for s in states) == [
        ("", "ping", "stopped"),
        ("ping", "dns", "running"),
    ]
    assert read(client, "ping").state == "running"


def test_reports_about_modules_make_no_events_and_runs_make_one_a_transition(
    client: Client,
) -> None:
    report(client, "stopped", request_id="")
    for state in ("created", "created", "running", "running", "completed", "completed", "failed"):
        report(client, state)
    found = events(client)
    assert [event["type"] for event in found] == ["run.completed", "run.running", "run.created"]
    assert found[0]["timestamp"] == NOW
    assert found[0]["metadata"]["request_id"] == "r"
    assert found[0]["metadata"]["previous_state"] == "running"
    assert set(found[0]) == {"type", "message", "metadata", "timestamp"}


# ------------------------------------------------------------ listing and filters


def test_states_are_listed_by_time_of_last_change(client: Client, clock: SteppedClock) -> None:
    for run in ("c", "a", "b"):
        report(client, "running", request_id=run)
        clock.now_s += 0.002
    report(client, "completed", request_id="c")
    states = client.call("ListModuleStates", agent_id="a").states
    assert [state.request_id for state in states] == ["a", "b", "c"]


def test_states_are_filtered_by_module_and_by_state(client: Client) -> None:
    for module, state in itertools.product(("ping", "dns"), ("running", "completed", "failed")):
        report(client, state, module_name=module, request_id=f"{module}-{state}")
    report(client, "stopped", module_name="dns", request_id="")
    report(client, "running", agent_id="other", request_id="elsewhere")

    def listed(**fields: Any) -> set[str]:
        response = client.call("ListModuleStates", agent_id="a", **fields)
        assert not response.error
        return {state.request_id for state in response.states}

    assert len(listed()) == 7
    assert listed(module_name="ping") == {"ping-running", "ping-completed", "ping-failed"}
    assert listed(module_name="dns") == {"dns-running", "dns-completed", "dns-failed", ""}
    assert listed(states=["running"]) == {"ping-running", "dns-running"}
    assert listed(states=["failed", "stopped"]) == {"ping-failed", "dns-failed", ""}
    assert listed(module_name="dns", states=["completed"]) == {"dns-completed"}
    assert listed(module_name="traceroute") == set()
    assert listed(states=["unheard of"]) == set()
    # What is nearly a run's state is a mistake; whatever else may be a module's own.
    for mistaken in ("Running", " failed", "COMPLETED", "", "  "):
        refused = client.call("ListModuleStates", agent_id="a", states=["running", mistaken])
        assert not refused.states
        assert refused.error.startswith(f"states has the name {mistaken!r}: the states of a run")
        assert "created, started, running, completed, error, failed" in refused.error


def test_the_oldest_generation_filters_by_module_too(any_client: Client) -> None:
    report(any_client, "running", module_name="ping", request_id="1")
    report(any_client, "running", module_name="dns", request_id="2")
    states = any_client.call("ListModuleStates", agent_id="a", module_name="dns").states
    assert [state.request_id for state in states] == ["2"]


def test_ids_with_the_characters_that_keys_are_made_of_do_not_meet(client: Client) -> None:
    agents = ["a:b", "a%3Ab", "a", "{a}", "%7Ba%7D", "a:b:c"]
    for agent in agents:
        report(client, "running", agent_id=agent, module_name="b:c", request_id="r:{%}")
        report(client, "running", agent_id=agent, module_name="c", request_id=f"own {agent}")
    for agent in agents:
        states = client.call("ListModuleStates", agent_id=agent).states
        assert {s.request_id for s in states} == {"r:{%}", f"own {agent}"}
        states = client.call("ListModuleStates", agent_id=agent, module_name="c").states
        assert {s.request_id for s in states} == {f"own {agent}"}
        assert read(client, "r:{%}", agent_id=agent).agent_id == agent
