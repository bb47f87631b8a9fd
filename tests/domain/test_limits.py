"""What a request may carry."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dbos_actors.api.messages import (
    Agent,
    MeasurementResult,
    ModuleState,
    RegisterAgentRequest,
    ScheduleTaskRequest,
    SetModuleStateRequest,
    StoreResultRequest,
    Task,
)
from dbos_actors.domain import limits as domain_limits
from dbos_actors.domain.limits import Limits
from dbos_actors.errors import (
    FieldLimitError,
    InvalidFieldError,
    MissingFieldError,
    RefusedError,
)

LIMITS = Limits()


def check_agent(agent: Agent, limits: Limits = LIMITS) -> Agent:
    return domain_limits.check_agent(RegisterAgentRequest(agent=agent), limits)


def check_state(state: ModuleState, limits: Limits = LIMITS) -> ModuleState:
    return domain_limits.check_state(SetModuleStateRequest(state=state), limits)


def check_result(result: MeasurementResult, limits: Limits = LIMITS) -> MeasurementResult:
    return domain_limits.check_result(StoreResultRequest(result=result), limits)


def check_task(task: Task, limits: Limits = LIMITS) -> Task:
    return domain_limits.check_task(ScheduleTaskRequest(task=task), limits)


def an_agent() -> Agent:
    return Agent(id="a", hostname="h", config={"k": "v"})


def a_state() -> ModuleState:
    return ModuleState(agent_id="a", module_name="ping", state="running", request_id="r")


def a_result() -> MeasurementResult:
    return MeasurementResult(id="r", agent_id="a", module_name="ping", data=b"1")


def a_task() -> Task:
    return Task(id="t", agent_id="a", module_name="ping", payload=b"1")


def refusal_of(check: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        check()
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "check"),
    [
        ("agent", lambda: domain_limits.check_agent(RegisterAgentRequest(), LIMITS)),
        ("state", lambda: domain_limits.check_state(SetModuleStateRequest(), LIMITS)),
        ("result", lambda: domain_limits.check_result(StoreResultRequest(), LIMITS)),
        ("task", lambda: domain_limits.check_task(ScheduleTaskRequest(), LIMITS)),
    ],
)
def test_a_request_whose_message_is_unset_is_refused_by_name(
    field: str, check: Callable[[], object]
) -> None:
    with pytest.raises(MissingFieldError) as caught:
        check()
    assert caught.value.field == field
    assert str(caught.value) == f"{field} is required"


def test_whole_requests_are_accepted_and_their_message_is_returned() -> None:
    assert check_agent(an_agent()) == an_agent()
    assert check_state(a_state()) == a_state()
    assert check_result(a_result()) == a_result()
    assert check_task(a_task()) == a_task()


@pytest.mark.parametrize(
    ("field", "check"),
    [
        ("agent.id", lambda: check_agent(Agent(hostname="h"))),
        ("state.agent_id", lambda: check_state(ModuleState(module_name="ping", state="created"))),
        ("state.state", lambda: check_state(ModuleState(agent_id="a", module_name="ping"))),
        ("result.id", lambda: check_result(MeasurementResult(agent_id="a", module_name="ping"))),
        ("result.agent_id", lambda: check_result(MeasurementResult(id="r", module_name="ping"))),
        ("result.module_name", lambda: check_result(MeasurementResult(id="r", agent_id="a"))),
        ("task.id", lambda: check_task(Task(agent_id="a", module_name="ping"))),
        ("task.agent_id", lambda: check_task(Task(id="t", module_name="ping"))),
        ("task.module_name", lambda: check_task(Task(id="t", agent_id="a"))),
        ("agent_id", lambda: domain_limits.check_id("agent_id", "", LIMITS)),
    ],
)
def test_an_empty_required_field_is_refused_by_its_name_on_the_wire(
    field: str, check: Callable[[], object]
) -> None:
    assert refusal_of(check) == f"{field} is required"


SMALL = Limits(id_bytes=8, name_bytes=10, text_bytes=12, data_bytes=14, map_entries=2, map_bytes=16)


@pytest.mark.parametrize(
    ("check", "refusal"),
    [
        (lambda s: check_agent(Agent(id=s), SMALL), "agent.id has {} bytes, the limit is 8"),
        (
            lambda s: check_agent(Agent(id="a", hostname=s), SMALL),
            "agent.hostname has {} bytes, the limit is 10",
        ),
        (
            lambda s: check_state(ModuleState(agent_id=s, state="s"), SMALL),
            "state.agent_id has {} bytes, the limit is 8",
        ),
        (
            lambda s: check_state(ModuleState(agent_id="a", state=s), SMALL),
            "state.state has {} bytes, the limit is 10",
        ),
        (
            lambda s: check_state(ModuleState(agent_id="a", state="s", module_name=s), SMALL),
            "state.module_name has {} bytes, the limit is 10",
        ),
        (
            lambda s: check_state(ModuleState(agent_id="a", state="s", request_id=s), SMALL),
            "state.request_id has {} bytes, the limit is 8",
        ),
        (
            lambda s: check_state(ModuleState(agent_id="a", state="s", error_message=s), SMALL),
            "state.error_message has {} bytes, the limit is 12",
        ),
        (
            lambda s: check_result(MeasurementResult(id=s, agent_id="a", module_name="m"), SMALL),
            "result.id has {} bytes, the limit is 8",
        ),
        (
            lambda s: check_result(MeasurementResult(id="r", agent_id=s, module_name="m"), SMALL),
            "result.agent_id has {} bytes, the limit is 8",
        ),
        (
            lambda s: check_result(MeasurementResult(id="r", agent_id="a", module_name=s), SMALL),
            "result.module_name has {} bytes, the limit is 10",
        ),
        *(
            (
                lambda s, name=name: check_result(
                    MeasurementResult(id="r", agent_id="a", module_name="m", **{name: s}), SMALL
                ),
                f"result.{name} has {{}} bytes, the limit is 10",
            )
            for name in (
                "agent_runtime_version",
                "module_revision",
                "dbos_server_id",
                "ingest_source",
            )
        ),
        (
            lambda s: check_task(Task(id=s, agent_id="a", module_name="m"), SMALL),
            "task.id has {} bytes, the limit is 8",
        ),
        (
            lambda s: check_task(Task(id="t", agent_id=s, module_name="m"), SMALL),
            "task.agent_id has {} bytes, the limit is 8",
        ),
        (
            lambda s: check_task(Task(id="t", agent_id="a", module_name=s), SMALL),
            "task.module_name has {} bytes, the limit is 10",
        ),
    ],
)
@pytest.mark.parametrize("character", ["x", "é", "€", "🙂"])
def test_a_text_is_accepted_up_to_its_limit_in_bytes_and_refused_beyond(
    check: Callable[[str], object], refusal: str, character: str
) -> None:
    limit = int(refusal.rsplit(" ", 1)[1])
    width = len(character.encode())
    check(character * (limit // width))
    over = character * (limit // width + 1)
    assert refusal_of(lambda: check(over)) == refusal.format(len(over.encode()))


def test_data_is_accepted_up_to_its_limit_and_refused_beyond() -> None:
    def result(size: int) -> MeasurementResult:
        return MeasurementResult(id="r", agent_id="a", module_name="m", data=bytes(size))

    def task(size: int) -> Task:
        return Task(id="t", agent_id="a", module_name="m", payload=bytes(size))

    check_result(result(1024 * 1024))
    check_task(task(1024 * 1024))
    assert (
        refusal_of(lambda: check_result(result(1024 * 1024 + 1)))
        == "result.data has 1048577 bytes, the limit is 1048576"
    )
    assert (
        refusal_of(lambda: check_task(task(1024 * 1024 + 1)))
        == "task.payload has 1048577 bytes, the limit is 1048576"
    )


def test_a_map_is_limited_in_entries() -> None:
    full = {str(n): "" for n in range(256)}
    check_agent(Agent(id="a", config=full))
    check_state(ModuleState(agent_id="a", state="s", details=full))
    assert (
        refusal_of(lambda: check_agent(Agent(id="a", config={**full, "more": ""})))
        == "agent.config has 257 entries, the limit is 256"
    )
    assert (
        refusal_of(
            lambda: check_state(ModuleState(agent_id="a", state="s", details={**full, "more": ""}))
        )
        == "state.details has 257 entries, the limit is 256"
    )


@pytest.mark.parametrize(
    ("details", "size"),
    [({"k": "x" * 15}, 16), ({"x" * 8: "y" * 8}, 16), ({"é": "é" * 7}, 16), ({"a": "🙂" * 4}, 17)],
)
def test_a_map_is_limited_in_bytes_of_keys_and_values_together(
    details: dict[str, str], size: int
) -> None:
    state = ModuleState(agent_id="a", state="s", details=details)
    if size <= 16:
        check_state(state, SMALL)
        state.details["z"] = ""
        size += 1
    assert (
        refusal_of(lambda: check_state(state, SMALL))
        == f"state.details has {size} bytes, the limit is 16"
    )


def test_fields_unknown_to_the_contract_are_dropped_since_nothing_limits_them() -> None:
    stowaway = b"\xfa\x3f\x83\x80\x04" + bytes(65539)  # field 1023, length-delimited
    agent = an_agent()
    agent.MergeFromString(stowaway)
    assert agent.ByteSize() > LIMITS.map_bytes
    assert check_agent(agent).ByteSize() == an_agent().ByteSize()
    state = a_state()
    state.MergeFromString(stowaway)
    assert check_state(state).ByteSize() == a_state().ByteSize()
    result = a_result()
    result.MergeFromString(stowaway)
    assert check_result(result).ByteSize() == a_result().ByteSize()
    task = a_task()
    task.MergeFromString(stowaway)
    assert check_task(task).ByteSize() == a_task().ByteSize()


@pytest.mark.parametrize("received_at", [-1, 2**53 + 1, 2**63 - 1])
def test_a_received_at_that_could_not_order_a_listing_exactly_is_refused(received_at: int) -> None:
    result = a_result()
    result.received_at = received_at
    with pytest.raises(InvalidFieldError, match=r"result\.received_at must be from 0 to"):
        check_result(result)


def test_a_task_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidFieldError, match=r"task\.scheduled_at"):
        check_task(Task(id="t", agent_id="a", module_name="m", scheduled_at=-1))
    with pytest.raises(InvalidFieldError, match=r"task\.max_attempts"):
        check_task(Task(id="t", agent_id="a", module_name="m", max_attempts=-1))


def test_a_limit_error_says_what_was_too_large() -> None:
    with pytest.raises(FieldLimitError) as caught:
        domain_limits.check_id("agent_id", "x" * 257, LIMITS)
    error = caught.value
    assert (error.field, error.size, error.limit, error.unit) == ("agent_id", 257, 256, "bytes")
