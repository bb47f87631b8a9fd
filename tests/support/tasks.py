"""Tasks as tests write, read and count them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from dbos_actors.actors.tasks.statistics import SchedulerStatistics
from dbos_actors.domain.tasks.audit import Audit
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.recovery import Recovery
from dbos_actors.domain.tasks.timers import Now
from tests.domain.tasks.helpers import all_rows
from tests.support.clients import Client
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

NOW_S = 1_700_000_000
"""What a `SteppedClock` shows at first."""


def task(task_id: str = "t", agent_id: str = "a", **fields: Any) -> dict[str, Any]:
    values = {"id": task_id, "agent_id": agent_id, "module_name": "ping", "payload": b"p"}
    return {"task": {**values, **fields}}


def schedule(client: Client, *names: str, **fields: Any) -> None:
    for name in names:
        response = client.call("ScheduleTask", **task(name, **fields))
        assert (response.success, response.error) == (True, "")


def lease(client: Client, **fields: Any) -> list[Any]:
    response = client.call("LeaseTasks", **fields)
    assert response.error == ""
    return list(response.tasks)


def get(client: Client, task_id: str = "t") -> Any:
    response = client.call("GetTask", task_id=task_id)
    assert response.found, response.error
    return response.task


def events(client: Client) -> list[dict[str, Any]]:
    return [json.loads(event) for event in client.call("GetEvents", limit=10_000).events]


def ledger(server: ServerThread) -> SchedulerStatistics:
    statistics = server.run(server.inside.tasks.statistics)
    assert statistics.imbalance == 0
    return statistics


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "it does not come to that"
        time.sleep(0.01)


def kept(valkey: ValkeyServer) -> TaskBook:
    """The task book as Redis has it, after checking that all of it fits together."""
    prefix = "dbos:{p0}:tasks"
    with valkey.client() as connection:
        client: Any = connection
        recovery = Recovery()
        values = client.hmget(f"{prefix}:snapshot", "generation", "sequence")
        generation, sequence = (int(value or 0) for value in values)
        for chunk in client.lrange(f"{prefix}:snapshot:{generation}", 0, -1):
            recovery.load_chunk(chunk)
        recovery.expect(sequence)
        for _, fields in client.xrange(f"{prefix}:journal"):
            recovery.replay(fields[b"e"])
        payloads = {task_id.decode() for task_id in client.hkeys(prefix)}
    now = Now(time.time(), 0.0)
    for _ in recovery.build(now):
        pass
    book = recovery.book
    audit = Audit(book)
    while audit.step(now):
        pass
    assert audit.findings.clean, audit.findings
    assert book.counters().balanced, book.counters()
    assert payloads == {task_id for task_id, _ in all_rows(book)}
    return book
