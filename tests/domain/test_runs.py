"""The life of a run: transitions, versions, and failures inferred from silence."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dbos_actors.api.messages import ModuleState
from dbos_actors.domain import events, runs
from dbos_actors.domain.runs import STATES, TERMINAL_STATES, TRANSITIONS, Report, Step
from dbos_actors.errors import (
    InvalidFieldError,
    InvalidTransitionError,
    MissingFieldError,
    RefusedError,
    VersionConflictError,
)

RANK = {"created": 0, "started": 1, "running": 2, "completed": 3, "error": 3, "failed": 3}


def a_report(state: str, version: int = 0, **fields: Any) -> ModuleState:
    return ModuleState(
        **{
            "agent_id": "a",
            "request_id": "r",
            "module_name": "ping",
            "state": state,
            "version": version,
            "timestamp": 90,
            **fields,
        }
    )


def a_run(*states: str) -> ModuleState:
    record: ModuleState | None = None
    for state in states:
        record = runs.report(record, a_report(state), now_s=100).record
    assert record is not None
    return record


def event_of(report: Report) -> dict[str, Any]:
    assert report.event is not None
    decoded: dict[str, Any] = json.loads(report.event)
    return decoded


# ------------------------------------------------------------ transitions


def test_the_transition_table_agrees_with_the_rule() -> None:
    assert set(TRANSITIONS) == {None, *STATES}
    for current, row in TRANSITIONS.items():
        assert tuple(row) == STATES
        for requested, step in row.items():
            if current is None:
                expected = Step.ENTER
            elif current == requested:
                expected = Step.REPEAT if current in TERMINAL_STATES else Step.PROGRESS
            elif RANK[requested] > RANK[current]:
                expected = Step.ENTER
            else:
                expected = Step.REFUSED
            assert step is expected, (current, requested)


@pytest.mark.parametrize("requested", STATES)
def test_a_run_may_begin_in_any_state(requested: str) -> None:
    report = runs.report(None, a_report(requested), now_s=100)
    assert report.record == a_report(requested, version=1)
    assert report.changed
    assert report.began == (requested not in TERMINAL_STATES)
    assert report.finished == (requested in TERMINAL_STATES)
    assert event_of(report)["type"] == f"run.{requested}"


@pytest.mark.parametrize("current", STATES)
@pytest.mark.parametrize("requested", STATES)
def test_every_pair_of_states(current: str, requested: str) -> None:
    before = a_run(current)
    step = TRANSITIONS[current][requested]
    reported = a_report(requested, details={"new": "1"})
    if step is Step.REFUSED:
        with pytest.raises(InvalidTransitionError) as caught:
            runs.report(before, reported, now_s=100)
        assert str(caught.value) == f"invalid transition {current} -> {requested}"
        return
    report = runs.report(before, reported, now_s=100)
    assert not report.began
    if step is Step.REPEAT:
        assert report == Report(before, changed=False)
        return
    assert report.changed
    assert report.record == a_report(requested, details={"new": "1"}, version=2)
    assert report.finished == (requested in TERMINAL_STATES)
    if step is Step.PROGRESS:
        assert report.event is None
    else:
        assert event_of(report) == {
            "type": f"run.{requested}",
            "message": f"run r of agent a (ping): {current} -> {requested}",
            "metadata": {
                "agent_id": "a",
                "request_id": "r",
                "module_name": "ping",
                "state": requested,
                "previous_state": current,
                "version": "2",
            },
            "timestamp": 100,
        }


@pytest.mark.parametrize("state", ["stopped", "Completed", "RUNNING", " running", "", "x" * 256])
@pytest.mark.parametrize("current", [None, "running", "completed"])
def test_a_state_of_another_name_is_refused(current: str | None, state: str) -> None:
    before = a_run(current) if current else None
    with pytest.raises(InvalidFieldError, match=r"state\.state is '.*', must be one of created,"):
        runs.report(before, a_report(state), now_s=100)


def test_a_storm_of_the_same_outcome_changes_nothing() -> None:
    # 159 such reports within a second were seen in the field.
    done = a_run("running", "completed")
    for n in range(159):
        reported = a_report("completed", version=n, details={"n": str(n)}, timestamp=n)
        assert runs.report(done, reported, now_s=100 + n) == Report(done, changed=False)


def test_progress_replaces_details_and_error_message() -> None:
    before = runs.report(
        None, a_report("running", details={"old": "1"}, error_message="e"), now_s=100
    ).record
    report = runs.report(before, a_report("running", details={"new": "2"}), now_s=100)
    assert dict(report.record.details) == {"new": "2"}
    assert report.record.error_message == ""


def test_a_report_without_a_time_is_made_now() -> None:
    assert runs.report(None, a_report("created", timestamp=0), now_s=100).record.timestamp == 100


def test_a_report_changes_neither_the_record_before_nor_what_was_sent() -> None:
    before, reported = a_run("running"), a_report("completed", timestamp=0, module_name="")
    runs.report(before, reported, now_s=100)
    assert before == a_report("running", version=1)
    assert reported == a_report("completed", timestamp=0, module_name="")


def test_a_long_error_is_kept_whole_but_cut_in_the_event() -> None:
    report = runs.report(None, a_report("error", error_message="x" * 5000), now_s=100)
    assert len(report.record.error_message) == 5000
    assert event_of(report)["metadata"]["error_message"] == "x" * 256


# ---------------------------------------------------------------- modules


def test_the_first_report_of_a_run_must_name_its_module() -> None:
    with pytest.raises(MissingFieldError, match=r"state\.module_name is required"):
        runs.report(None, a_report("created", module_name=""), now_s=100)


def test_a_later_report_may_leave_the_module_out() -> None:
    report = runs.report(a_run("created"), a_report("running", module_name=""), now_s=100)
    assert report.record.module_name == "ping"


@pytest.mark.parametrize("state", ["running", "completed"])
def test_a_run_keeps_its_module(state: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        runs.report(a_run(state), a_report(state, module_name="tcp"), now_s=100)
    assert str(caught.value) == "state.module_name is 'tcp', this run's is 'ping'"


# --------------------------------------------------------------- versions


@pytest.mark.parametrize("version", [0, 1])
def test_a_run_begins_with_version_1(version: int) -> None:
    assert runs.report(None, a_report("created", version), now_s=100).record.version == 1


@pytest.mark.parametrize("version", [-1, 2, 2**62])
def test_a_run_begins_with_no_other_version(version: int) -> None:
    with pytest.raises(VersionConflictError, match=f"expected 1, got {version}$"):
        runs.report(None, a_report("created", version), now_s=100)


def test_the_next_version_is_accepted_and_any_other_is_a_conflict() -> None:
    before = a_run("created", "running")
    assert runs.report(before, a_report("completed", 3), now_s=100).record.version == 3
    for version in (-1, 1, 2, 4):
        with pytest.raises(VersionConflictError) as caught:
            runs.report(before, a_report("completed", version), now_s=100)
        assert str(caught.value) == f"version conflict: expected 3, got {version}"


def test_the_current_version_with_the_current_content_is_a_retry() -> None:
    before = runs.report(
        None, a_report("running", 1, details={"k": "v"}, timestamp=0), now_s=100
    ).record
    retry = a_report("running", 1, details={"k": "v"}, timestamp=0)
    assert runs.report(before, retry, now_s=105) == Report(before, changed=False)
    retry.timestamp = before.timestamp
    retry.module_name = ""
    assert runs.report(before, retry, now_s=105) == Report(before, changed=False)


@pytest.mark.parametrize(
    "difference",
    [
        {"details": {"k": "w"}},
        {"details": {}},
        {"details": {"k": "v", "more": ""}},
        {"error_message": "e"},
        {"timestamp": 91},
        {"state": "completed"},
    ],
)
def test_the_current_version_with_other_content_is_a_conflict(difference: dict[str, Any]) -> None:
    before = runs.report(None, a_report("running", details={"k": "v"}), now_s=100).record
    reported = a_report(**{"state": "running", "version": 1, "details": {"k": "v"}, **difference})
    with pytest.raises(VersionConflictError, match=r"expected 2, got 1$"):
        runs.report(before, reported, now_s=100)


def test_the_next_version_is_a_change_even_with_the_current_content() -> None:
    report = runs.report(a_run("running"), a_report("running", 2), now_s=100)
    assert report.changed
    assert report.record.version == 2


def test_a_forbidden_transition_is_refused_as_such_whatever_the_version() -> None:
    for version in (0, 1, 2, 9):
        with pytest.raises(InvalidTransitionError):
            runs.report(a_run("completed"), a_report("running", version), now_s=100)


# ------------------------------------------------------ inferred failures


def lapsed(*states: str) -> ModuleState:
    return runs.fail_unfinished(a_run(*states), "agent fell silent", now_s=200).record


@pytest.mark.parametrize("state", ["created", "started", "running"])
def test_missing_heartbeats_fail_an_unfinished_run(state: str) -> None:
    before = runs.report(None, a_report(state, details={"k": "v"}), now_s=100).record
    report = runs.fail_unfinished(before, "agent fell silent", now_s=200)
    assert report.finished
    assert report.record == a_report(
        "failed",
        version=2,
        details={"k": "v"},
        error_message="agent fell silent",
        timestamp=200,
        inferred_from=state,
    )
    assert event_of(report)["type"] == "run.failed"
    assert event_of(report)["metadata"]["inferred_from"] == state
    assert before.state == state


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
def test_missing_heartbeats_do_not_fail_a_finished_run(state: str) -> None:
    with pytest.raises(InvalidTransitionError):
        runs.fail_unfinished(a_run(state), "agent fell silent", now_s=200)


def test_missing_heartbeats_fail_a_run_once() -> None:
    with pytest.raises(InvalidTransitionError):
        runs.fail_unfinished(lapsed("running"), "agent fell silent", now_s=300)


@pytest.mark.parametrize("before", ["created", "started", "running"])
@pytest.mark.parametrize("requested", STATES)
def test_after_an_inferred_failure_every_report_is_taken_that_was_legal_before_it(
    before: str, requested: str
) -> None:
    failed = lapsed(before)
    if TRANSITIONS[before][requested] is Step.REFUSED:
        with pytest.raises(InvalidTransitionError, match=rf"failed -> {requested}$"):
            runs.report(failed, a_report(requested), now_s=300)
        return
    report = runs.report(failed, a_report(requested), now_s=300)
    assert report.record == a_report(requested, version=3)
    assert report.began == (requested not in TERMINAL_STATES)
    assert not report.finished
    if requested == "failed":
        assert report.event is None
    else:
        assert event_of(report)["metadata"]["previous_state"] == "failed"


def test_an_inferred_failure_survives_storage() -> None:
    stored = ModuleState.FromString(lapsed("running").SerializeToString())
    assert runs.report(stored, a_report("completed"), now_s=300).record.state == "completed"


def test_a_failure_the_agent_reports_after_an_inferred_one_is_final() -> None:
    own = runs.report(lapsed("running"), a_report("failed", 2, error_message="mine"), now_s=300)
    assert own.changed
    assert own.record.error_message == "mine"
    assert own.record.inferred_from == ""
    with pytest.raises(InvalidTransitionError):
        runs.report(own.record, a_report("completed"), now_s=300)


def test_a_version_from_before_an_inferred_failure_is_a_conflict() -> None:
    with pytest.raises(VersionConflictError, match="expected 3, got 2"):
        runs.report(lapsed("running"), a_report("completed", 2), now_s=300)


def test_a_client_cannot_mark_its_own_failure_as_inferred() -> None:
    record = runs.report(None, a_report("failed", inferred_from="running"), now_s=100).record
    assert record.inferred_from == ""
    with pytest.raises(InvalidTransitionError):
        runs.report(record, a_report("running"), now_s=100)
    module = runs.report_module(None, a_report("failed", inferred_from="running"), now_s=100).record
    assert module.inferred_from == ""


# ---------------------------------------------------------------- modules


def test_a_report_about_a_module_is_always_accepted() -> None:
    record: ModuleState | None = None
    for n, (state, version) in enumerate(
        [("completed", 0), ("created", 7), ("stopped", -1), ("stopped", 3), ("Ärger", 1)], 1
    ):
        reported = a_report(state, version, request_id="", timestamp=0)
        report = runs.report_module(record, reported, now_s=100 + n)
        record = report.record
        assert report.changed
        assert not report.began
        assert not report.finished
        assert report.event is None
        assert record == a_report(state, n, request_id="", timestamp=100 + n)
        assert reported.version == version


def test_a_report_about_a_module_must_name_it() -> None:
    with pytest.raises(MissingFieldError, match=r"state\.module_name is required"):
        runs.report_module(None, a_report("stopped", module_name=""), now_s=100)


# ------------------------------------------------------------------ model


class RunMachine(RuleBasedStateMachine):
    """A run against a model that keeps the agent's words and the server's guess apart."""

    def __init__(self) -> None:
        super().__init__()
        self.record: ModuleState | None = None
        self.said: str | None = None
        self.guessed = False
        self.version = 0
        self.details: dict[str, str] = {}
        self.unfinished = 0  # what an index fed by began and finished would count

    def shown(self) -> str | None:
        return "failed" if self.guessed else self.said

    def accept(self, report: Report, *, said: str | None, guessed: bool) -> None:
        before = self.shown()
        assert report.changed
        self.said, self.guessed = said, guessed
        self.version += 1
        self.record = report.record
        self.unfinished += report.began
        self.unfinished -= report.finished and before is not None
        assert (report.event is not None) == (self.shown() != before)

    @rule(
        state=st.sampled_from(STATES),
        version=st.sampled_from(["none", "next", "current", "behind", "ahead"]),
        details=st.sampled_from([{}, {"k": "1"}, {"k": "2"}]),
    )
    def report(self, state: str, version: str, details: dict[str, str]) -> None:
        number = {
            "none": 0,
            "next": self.version + 1,
            "current": self.version,
            "behind": self.version - 1,
            "ahead": self.version + 2,
        }[version]
        outcome = self.expected(state, number, details)
        reported = a_report(state, number, details=details)
        if isinstance(outcome, type):
            with pytest.raises(outcome):
                runs.report(self.record, reported, now_s=100)
            return
        report = runs.report(self.record, reported, now_s=100)
        if outcome == "changed":
            self.details = details
            self.accept(report, said=state, guessed=False)
        else:
            assert report.record is self.record
            assert report == Report(report.record, changed=False)

    def expected(
        self, state: str, number: int, details: dict[str, str]
    ) -> Literal["changed", "unchanged"] | type[RefusedError]:
        if self.said is not None:
            if state == self.said and state in TERMINAL_STATES:
                return "unchanged"
            if state != self.said and RANK[state] <= RANK[self.said]:
                return InvalidTransitionError
        if number in (0, self.version + 1) or (self.guessed and state == "failed"):
            return "changed"
        if (state, number, details) == (self.shown(), self.version, self.details):
            return "unchanged"
        return VersionConflictError

    @precondition(lambda self: self.record is not None)
    @rule()
    def fall_silent(self) -> None:
        assert self.record is not None
        if runs.is_finished(self.record):
            with pytest.raises(RefusedError):
                runs.fail_unfinished(self.record, "silent", now_s=100)
        else:
            report = runs.fail_unfinished(self.record, "silent", now_s=100)
            self.accept(report, said=self.said, guessed=True)

    @precondition(lambda self: self.record is not None)
    @rule()
    def restart_the_server(self) -> None:
        assert self.record is not None
        self.record = ModuleState.FromString(self.record.SerializeToString())

    @invariant()
    def the_record_agrees_with_the_model(self) -> None:
        if self.record is None:
            assert self.version == 0
            return
        assert self.record.state == self.shown()
        assert self.record.version == self.version
        assert self.record.details == self.details
        assert bool(self.record.inferred_from) == self.guessed
        assert self.unfinished == (not runs.is_finished(self.record))


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(
    texts=st.tuples(st.text(), st.text(), st.text(), st.text(max_size=300)),
    was=st.sampled_from([None, "created", "running"]),
    inferred_from=st.sampled_from(["", "running"]),
)
def test_the_event_of_a_transition_is_the_json_that_is_kept(
    texts: tuple[str, str, str, str], was: str | None, inferred_from: str
) -> None:
    agent_id, request_id, module_name, error_message = texts
    record = ModuleState(
        agent_id=agent_id,
        request_id=request_id,
        module_name=module_name,
        error_message=error_message,
        state="failed",
        version=7,
        inferred_from=inferred_from,
    )
    metadata = {
        "agent_id": agent_id,
        "request_id": request_id,
        "module_name": module_name,
        "state": "failed",
        "previous_state": was or "",
        "version": "7",
    }
    if error_message:
        metadata["error_message"] = error_message[:256]
    if inferred_from:
        metadata["inferred_from"] = inferred_from
    message = f"run {request_id} of agent {agent_id} ({module_name}): {was or 'new'} -> failed"
    assert runs._event(record, was, 1_700_000_000) == events.event(
        "run.failed", message, metadata, 1_700_000_000
    )
