"""What docs/api.md says by hand, held against a server; its tables are made from the contract."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from dbos_actors.api.comments import UndocumentedError, comments_of, with_tables
from dbos_actors.client import (
    AckTaskRequest,
    Agent,
    DeleteAgentRequest,
    GetAgentRequest,
    GetEventsRequest,
    GetModuleStateRequest,
    LeaseTasksRequest,
    MeasurementResult,
    ModuleState,
    NackTaskRequest,
    RegisterAgentRequest,
    ScheduleTaskRequest,
    SetModuleStateRequest,
    StoreResultRequest,
    SubscribeTasksRequest,
    SubscribeTasksRequestStart,
    Task,
)
from dbos_actors.client.trio import DbosStub, GRPCError, Status, connect
from dbos_actors.domain.paging import PAGE_SIZE_MAX
from dbos_actors.domain.runs import STATES, TRANSITIONS, Step
from dbos_actors.domain.tasks.limits import ATTEMPTS_MAX, DELAY_S_MAX, LEASE_S_MAX
from dbos_actors.server import open_supervisor
from dbos_actors.settings import Settings
from dbos_actors.store.embedded import open_embedded

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture
async def dbos(tmp_path: Path) -> AsyncIterator[DbosStub]:
    """A client of a server that watches for silence and writes an event for each result."""
    async with open_embedded(tmp_path) as store:
        settings = Settings(
            port=0, redis_addr=store.address, heartbeat_timeout_s=1, event_results=True
        )
        async with open_supervisor(settings) as server, connect(server.address) as stub:
            yield stub


def rows_of(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading that is written by hand, without its head."""
    text = PAGE.split(f"{heading}\n", 1)[1]
    if f"<!-- end of {heading.strip('# ')} -->" in text:
        text = text.split(f"<!-- end of {heading.strip('# ')} -->", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[0].splitlines()][
        2:
    ]


def masked(event: bytes) -> dict[str, Any]:
    """An event without what differs from run to run."""
    content: dict[str, Any] = json.loads(event)
    content["timestamp"] = 0
    for name in ("last_seen", "lateness_ms"):
        if name in content["metadata"]:
            content["metadata"][name] = "0"
    return content


def agent_request(**fields: Any) -> RegisterAgentRequest:
    return RegisterAgentRequest(agent=Agent(id="probe-1", **fields))


def state_request(state: str, **fields: Any) -> SetModuleStateRequest:
    return SetModuleStateRequest(
        state=ModuleState(
            agent_id="probe-1", request_id="run-1", module_name="ping", state=state, **fields
        )
    )


def result_request(data: bytes) -> StoreResultRequest:
    return StoreResultRequest(
        result=MeasurementResult(
            id="result-1",
            agent_id="probe-1",
            module_name="ping",
            data=data,
            ingest_source="nats",
        )
    )


def task_request(*, revive: bool = False) -> ScheduleTaskRequest:
    return ScheduleTaskRequest(
        task=Task(id="task-1", agent_id="probe-1", module_name="ping", max_attempts=1),
        revive=revive,
    )


async def test_every_event_on_the_page_is_what_the_server_writes(dbos: DbosStub) -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    shown = [masked(line.encode()) for line in block.splitlines()]

    for alive in (True, False, True):
        await dbos.register_agent(agent_request(hostname="probe-1.example.net", alive=alive))
    await dbos.set_module_state(state_request("running"))
    for data in (b"{}", b"{ }"):
        await dbos.store_result(result_request(data))
    await dbos.schedule_task(task_request())
    (leased,) = (await dbos.lease_tasks(LeaseTasksRequest())).tasks
    await dbos.nack_task(
        NackTaskRequest(task_id="task-1", lease_token=leased.lease_token, reason="no route to host")
    )
    await dbos.schedule_task(task_request(revive=True))
    await dbos.ack_task(AckTaskRequest(task_id="task-1"))
    with trio.fail_after(20):
        while (await dbos.get_agent(GetAgentRequest(agent_id="probe-1"))).agent.alive:  # noqa: ASYNC110
            await trio.sleep(0.05)  # only the server knows when
    await dbos.delete_agent(DeleteAgentRequest(agent_id="probe-1"))

    newest_first = (await dbos.get_events(GetEventsRequest(limit=1_000))).events
    written = [masked(event) for event in reversed(newest_first)]
    assert [event for event in shown if event not in written] == []
    assert [event["type"] for event in shown if event["type"] != "result.stored"] == [
        event["type"] for event in written if event["type"] != "result.stored"
    ]
    named = {row[0].strip("`") for row in rows_of("### Event types")}
    assert {event["type"] for event in written} <= named | {f"run.{state}" for state in STATES}


async def test_two_heartbeats_merge_as_the_page_says(dbos: DbosStub) -> None:
    assert [row[0] for row in rows_of("### RegisterAgent")] == [
        "`hostname`, `config`, `alive`",
        "`first_seen`",
        "`last_seen`",
        "`total_heartbeats`",
    ]
    await dbos.register_agent(
        agent_request(
            hostname="a",
            config={"a": "1"},
            alive=True,
            first_seen=100,
            last_seen=900,
            total_heartbeats=7,
        )
    )
    await dbos.register_agent(
        agent_request(hostname="b", config={"b": "2"}, alive=False, last_seen=800)
    )
    merged = (await dbos.get_agent(GetAgentRequest(agent_id="probe-1"))).agent
    assert merged == Agent(
        id="probe-1",
        hostname="b",
        config={"b": "2"},
        alive=False,
        first_seen=100,
        last_seen=900,
        total_heartbeats=7,
    )


async def test_refusals_read_as_the_page_says(dbos: DbosStub) -> None:
    async def refused(call: Any) -> None:
        response = await call
        assert not response.success
        assert response.error in " ".join(PAGE.split()), response.error

    await refused(dbos.store_result(result_request(b"x" * 1_048_577)))
    await dbos.set_module_state(state_request("running"))
    await dbos.set_module_state(state_request("running"))
    await refused(dbos.set_module_state(state_request("running", version=2, timestamp=1)))
    await dbos.set_module_state(state_request("completed"))
    await refused(dbos.set_module_state(state_request("running")))
    await dbos.schedule_task(task_request())
    await dbos.lease_tasks(LeaseTasksRequest())
    changed = task_request()
    assert changed.task is not None
    changed.task.payload = b"another"
    await refused(dbos.schedule_task(changed))
    await refused(dbos.ack_task(AckTaskRequest(task_id="task-1", lease_token="0" * 16)))


async def test_a_report_about_a_module_itself_has_no_run_to_ask_for(dbos: DbosStub) -> None:
    report = SetModuleStateRequest(
        state=ModuleState(agent_id="probe-1", module_name="ping", state="stopped")
    )
    assert (await dbos.set_module_state(report)).success
    answer = await dbos.get_module_state(GetModuleStateRequest(agent_id="probe-1"))
    assert answer.error == "request_id is required"


@pytest.mark.parametrize(
    "first",
    [
        SubscribeTasksRequest(),
        SubscribeTasksRequest(start=SubscribeTasksRequestStart(max_in_flight=10_001)),
    ],
)
async def test_a_subscription_that_begins_wrongly_is_a_failed_precondition(
    dbos: DbosStub, first: SubscribeTasksRequest
) -> None:
    with pytest.raises(GRPCError) as failure:
        async for _ in dbos.subscribe_tasks([first]):
            pass
    assert failure.value.status is Status.FAILED_PRECONDITION


def test_the_table_of_transitions_is_that_of_the_code() -> None:
    words = {
        Step.ENTER: "enters",
        Step.PROGRESS: "progress",
        Step.REPEAT: "repeat",
        Step.REFUSED: "refused",
    }
    expected = []
    for current, row in TRANSITIONS.items():
        steps = [words[row[state]] for state in STATES]
        if current is None:
            steps = ["begins" if step == "enters" else step for step in steps]
        expected.append([current or "no such run", *steps])
    assert rows_of("### SetModuleState") == expected


def test_the_fixed_limits_are_those_of_the_code() -> None:
    fixed = {row[0]: row[1] for row in rows_of("### Limits") if row[2] == "fixed"}
    assert fixed["entries of a page"] == f"{PAGE_SIZE_MAX:,}"
    assert fixed["deliveries of a task"] == f"{ATTEMPTS_MAX:,}"
    assert fixed["a lease"] == f"{LEASE_S_MAX // 3600} hours"
    assert fixed["a retry delay"] == f"{DELAY_S_MAX // 86_400} days"


def test_something_without_a_comment_or_a_place_is_not_generated() -> None:
    file = FileDescriptorProto(name="some.proto")
    message = file.message_type.add(name="Thing")
    with pytest.raises(UndocumentedError, match="Thing has no comment"):
        comments_of(file)
    file.source_code_info.location.add(path=[4, 0], leading_comments=" A thing.\n")
    comments = comments_of(file)
    with pytest.raises(UndocumentedError, match="0 places for Thing"):
        with_tables("", file, comments)
    field = message.field.add(name="size", number=1, type=3, label=3)
    file.source_code_info.location.add(path=[4, 0, 2, 0], leading_comments=" One\n | two.\n")
    page = with_tables("<!-- generated: Thing -->\n<!-- end of Thing -->", file, comments_of(file))
    assert f"| `{field.name}` | 1 | repeated int64 | One \\| two. |" in page
    assert with_tables(page, file, comments_of(file)) == page
