"""Records a fixture: runs the server of another checkout and fills its store through its API.

    git worktree add --detach /tmp/old 4387b10
    python -m tests.layouts.record /tmp/old tests/layouts/version-1.jsonl

The server runs with this interpreter's packages, on a private Valkey. Everything is written
with a real client and the present contract. A call that a version does not have is left out.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from tests.layouts.fixture import Call, Fixture, dumped
from tests.support.clients import CallError, GrpcioClient
from tests.support.process import ServerProcess
from tests.support.valkey import ValkeyServer

AGENTS = ("probe-1", "probe: {2}%41/ü\n", "silent", "results-only")
ODD_IDS = ("a:b", "{c}", "100%", "Ключ 1", "tab\tand\nline", "%3A")
STATES = ("created", "started", "running", "completed", "error", "failed")

# More turns than the journal may have entries before a snapshot is due.
_TURNS = 100_100
_WAIT_S = 60.0


def main(checkout: Path, path: Path) -> None:
    """Record the store of the server in ``checkout`` into ``path``."""
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with ValkeyServer() as valkey:
        with _serving(checkout, valkey, DBOS_HEARTBEAT_TIMEOUT="1") as client:
            _fall_silent(client)
        with _serving(checkout, valkey) as client:
            _write(client, valkey)
            wall_s = time.time()
            calls = list(_asked(client))
        with valkey.client() as redis:
            layout = int(redis.get("dbos:{p0}:layout") or 1)
            keys = list(dumped(redis))
    Fixture(layout, commit, wall_s, keys, calls).write(path)


@contextmanager
def _serving(checkout: Path, valkey: ValkeyServer, **variables: str) -> Iterator[GrpcioClient]:
    variables["PYTHONPATH"] = str(checkout)
    with ServerProcess(valkey.address, **variables) as server:
        server.wait_ready()
        with GrpcioClient(server.address) as client:
            yield client
        server.send(signal.SIGTERM)
        server.wait()


def _until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at, "it does not come"
        time.sleep(0.1)


def _fall_silent(client: GrpcioClient) -> None:
    """An agent that lapses, with a run that is failed for it."""
    client.call("RegisterAgent", agent={"id": "silent", "hostname": "s", "alive": True})
    run = {"agent_id": "silent", "module_name": "ping", "request_id": "lost", "state": "running"}
    client.call("SetModuleState", state=run)
    _until(lambda: not client.call("GetAgent", agent_id="silent").agent.alive)


def _write(client: GrpcioClient, valkey: ValkeyServer) -> None:
    for agent_id in AGENTS[:2]:
        agent = {
            "id": agent_id,
            "hostname": "probe.example.net",
            "alive": True,
            "config": {"interval": "60", "ключ": "значение"},
            "total_heartbeats": 7,
            "first_seen": 1_600_000_000,
        }
        _do(client, "RegisterAgent", agent=agent)
        _write_states(client, agent_id)
    for agent_id in (AGENTS[0], AGENTS[1], AGENTS[3]):
        _write_results(client, agent_id)
    _write_tasks(client, valkey)
    gone = {"id": "gone", "hostname": "gone", "alive": True}
    _do(client, "RegisterAgent", agent=gone)
    _do(client, "ScheduleTask", task=_task("gone-1", "gone"))
    _do(client, "DeleteAgent", agent_id="gone")


def _write_states(client: GrpcioClient, agent_id: str) -> None:
    for state in STATES:
        for step in STATES[: STATES.index(state) + 1] if state in STATES[:4] else (state,):
            run = {
                "agent_id": agent_id,
                "module_name": "trace:route" if state == "error" else "ping",
                "request_id": f"run-{state}",
                "state": step,
                "error_message": "no route" if step == "error" else "",
                "details": {"step": step},
            }
            _do(client, "SetModuleState", state=run)
    for request_id in ODD_IDS:
        run = {"agent_id": agent_id, "module_name": "ping", "request_id": request_id}
        _do(client, "SetModuleState", state={**run, "state": "running"})
    for number in range(2):
        report = {"agent_id": agent_id, "module_name": "trace:route", "state": "installed"}
        _do(client, "SetModuleState", state={**report, "details": {"revision": str(number)}})


def _write_results(client: GrpcioClient, agent_id: str) -> None:
    for number, result_id in enumerate(("result-1", "imported", "empty", *ODD_IDS)):
        result = {
            "id": result_id,
            "agent_id": agent_id,
            "module_name": ("ping", "trace:route")[number % 2],
            "data": b"" if result_id == "empty" else bytes(range(64)),
            "timestamp": 1_700_000_000,
            "received_at": 1_600_000_000 if result_id == "imported" else 0,
            "agent_start_time": 5,
            "agent_runtime_version": "3",
            "module_revision": "r",
            "ingest_source": "relay",
        }
        _do(client, "StoreResult", result=result)
    conflict = {"id": "result-1", "agent_id": agent_id, "module_name": "ping", "data": b"other"}
    _do(client, "StoreResult", result=conflict)


def _write_tasks(client: GrpcioClient, valkey: ValkeyServer) -> None:
    """Tasks of every status, a snapshot in the middle, and a journal after it."""
    future = int(time.time()) + 10 * 365 * 86400
    for agent_id in AGENTS[:2]:
        _do(client, "ScheduleTask", task=_task(f"far of {agent_id}", agent_id, at=future))
    for name in ("inflight", "completed", "dead", "delayed"):
        _do(client, "ScheduleTask", task=_task(name, "probe-1", attempts=1 + (name == "delayed")))
    tokens = _leased(client)
    extended = {"task_id": "inflight", "lease_token": tokens["inflight"], "lease_seconds": 43_200}
    responses = client.call_many("ExtendLease", (extended for _ in range(_TURNS)))
    assert all(response.success for response in responses)
    _until(lambda: valkey.execute("EXISTS", "dbos:{p0}:tasks:snapshot") == 1)
    _do(client, "AckTask", task_id="completed", lease_token=tokens["completed"])
    for name, delay_s in (("dead", 0), ("delayed", 30 * 86400)):
        nack = {"task_id": name, "lease_token": tokens[name], "retry_delay_seconds": delay_s}
        _do(client, "NackTask", **nack, reason="не вышло")
    for name in ("due", *ODD_IDS):
        _do(client, "ScheduleTask", task=_task(name, "probe-1", module="trace:route"))
    _do(client, "ScheduleTask", task=_task("acknowledged without a lease", AGENTS[1]))
    _do(client, "AckTask", task_id="acknowledged without a lease")
    _do(client, "ScheduleTask", task=_task("cancelled", "probe-1"))
    with suppress(CallError):  # before version 3 there is no such method
        _do(client, "CancelTask", task_id="cancelled", reason="не нужно")


def _leased(client: GrpcioClient) -> dict[str, str]:
    leased = client.call(
        "LeaseTasks",
        agent_id="probe-1",
        limit=100,
        lease_seconds=43_200,
        worker_id="w",
        request_key="key",  # from version 2 on; before, nobody looks at it
    )
    return {task.id: task.lease_token for task in leased.tasks}


def _task(
    task_id: str, agent_id: str, *, module: str = "ping", at: int = 0, attempts: int = 3
) -> dict[str, Any]:
    return {
        "id": task_id,
        "agent_id": agent_id,
        "module_name": module,
        "payload": bytes(range(32)),
        "scheduled_at": at,
        "max_attempts": attempts,
    }


def _do(client: GrpcioClient, method: str, **fields: Any) -> None:
    response = client.call(method, **fields)
    assert response.success, response.error


def _asked(client: GrpcioClient) -> Iterator[Call]:
    """Every read that shows what is stored, with its answer."""

    def ask(method: str, **request: Any) -> Call:
        response = client.call(method, **request)
        return Call(method, request, MessageToDict(response, preserving_proto_field_name=True))

    yield ask("ListAgents")
    for agent_id in AGENTS:
        yield ask("GetAgent", agent_id=agent_id)
        states = ask("ListModuleStates", agent_id=agent_id)
        yield states
        yield ask("ListResults", agent_id=agent_id)
        for module in ("ping", "trace:route"):
            yield ask("ListModuleStates", agent_id=agent_id, module_name=module)
            yield ask("ListResults", agent_id=agent_id, module_name=module)
        for state in states.response.get("states", ()):
            if state.get("request_id"):
                request_id = state["request_id"]
                yield ask("GetModuleState", request_id=request_id, agent_id=agent_id)
                yield ask("GetModuleState", request_id=request_id)
        for request_id in ("result-1", "imported", "empty", *ODD_IDS):
            yield ask("GetResult", agent_id=agent_id, request_id=request_id)
    tasks = ask("ListTasks")
    yield tasks
    for task in tasks.response["tasks"]:
        yield ask("GetTask", task_id=task["id"])
    for status in sorted({task["status"] for task in tasks.response["tasks"]}):
        yield ask("ListTasks", status=status)
    yield ask("ListDueTasks")
    yield ask("GetEvents", limit=1_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
