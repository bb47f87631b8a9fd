"""What ``check`` and ``repair`` cost at a million results and a million tasks.

    python -m tests.maintenance.scale [COUNT]

Fills a private Valkey, checks it, takes away the index of the results and a journal entry, repairs
it, and prints seconds and the largest memory of each command.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from dbos_actors.api.messages import MeasurementResult, Task
from dbos_actors.domain.tasks import scheduling, settling
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.record import payload_digest
from dbos_actors.domain.tasks.snapshot import snapshot_chunks
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.store import Keys
from tests.support.valkey import ValkeyServer

KEYS = Keys()
_AT_ONCE = 2_000


def fill_results(redis: Any, count: int) -> None:
    """Results of 200 bytes, all of one agent."""
    redis.sadd(KEYS.agents_known, "probe-1")
    for start in range(0, count, _AT_ONCE):
        records = {}
        times = {}
        for number in range(start, min(count, start + _AT_ONCE)):
            result = MeasurementResult(
                id=f"result-{number}",
                agent_id="probe-1",
                module_name="ping",
                data=bytes(200),
                received_at=1_700_000_000 + number // 1_000,
            )
            records[result.id] = result.SerializeToString()
            times[result.id] = result.received_at
        redis.hset(f"{KEYS.results}probe-1", mapping=records)
        redis.zadd(f"{KEYS.results_at}probe-1", times)


def fill_tasks(redis: Any, count: int) -> None:
    """Tasks of a thousand agents: a snapshot of all, and an entry after it for each of the last."""
    book = TaskBook(TaskLimits(tasks_max=2 * count + 10_000))
    now = Now(time.time(), 0.0)
    journal = []
    for start in range(0, count, _AT_ONCE):
        change = book.begin(now)
        records = {}
        for number in range(start, min(count, start + _AT_ONCE)):
            agent, payload = f"probe-{number % 1_000}", bytes(100)
            task = Task(
                id=f"task-{number}",
                agent_id=agent,
                module_name="ping",
                payload=payload,
                scheduled_at=1_700_000_000,
            )
            records[task.id] = task.SerializeToString()
            scheduling.schedule(
                book,
                change,
                task_id=task.id,
                agent_id=agent,
                module_name="ping",
                payload_digest=payload_digest(payload),
                scheduled_at=1_700_000_000,
            )
        entry = book.seal(change)
        book.apply(change)
        redis.hset(KEYS.tasks, mapping=records)
        journal.append((book.sequence, entry))
    *first, last = journal
    for sequence, entry in [*first[-3:], last]:
        redis.xadd(KEYS.tasks_journal, {"e": entry}, id=f"{sequence}-0")
    for chunk in snapshot_chunks(book):
        redis.rpush(f"{KEYS.tasks_snapshots}1", chunk)
    redis.hset(KEYS.tasks_snapshot, mapping={"generation": 1, "sequence": book.sequence})
    for number in range(1_000):
        change = book.begin(now)
        settling.ack(book, change, f"task-{number}")
        redis.xadd(KEYS.tasks_journal, {"e": book.seal(change)}, id=f"{change.sequence}-0")
        book.apply(change)


def measured(address: str, *command: str) -> None:
    """Run a command and print what it took."""
    began_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "dbos_actors", *command],
        env={**os.environ, "REDIS_ADDR": address},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    print(
        f"{command[0]}: status {process.returncode}, {time.monotonic() - began_s:.1f} s, "
        f"{usage.ru_utime + usage.ru_stime:.1f} s of CPU, {usage.ru_maxrss / 1024:.0f} MB; "
        f"{said[-1]}",
        flush=True,
    )


def main(count: int) -> None:
    """Fill, check, damage, repair, check."""
    with ValkeyServer(appendfsync="everysec") as server:
        with server.client() as redis:
            fill_results(redis, count)
            fill_tasks(redis, count)
        measured(server.address, "check")
        with server.client() as redis:
            redis.delete(f"{KEYS.results_at}probe-1")
            entries: Any = redis.xrange(KEYS.tasks_journal, "-", "+")
            redis.xdel(KEYS.tasks_journal, entries[len(entries) // 2][0])
        measured(server.address, "check")
        measured(server.address, "repair", "--yes")
        measured(server.address, "check")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
