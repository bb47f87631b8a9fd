"""The store's smaller parts, each by itself."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from dbos_actors.clock import SystemClock
from dbos_actors.store import proc
from dbos_actors.store.batch import Batch, Form, Wire
from dbos_actors.store.committer import backoff_s
from dbos_actors.store.connection import Connection, ConnectionLostError
from dbos_actors.store.event_ids import EventIds
from dbos_actors.store.ownership import OwnerProcess, is_gone, this_process
from dbos_actors.store.resp import pack, unpacked
from dbos_actors.store.safety import Requirements, judge
from dbos_actors.store.settings import StoreSettings
from dbos_actors.store.wait_timeouts import WaitTimeouts, give_up_at_s
from tests.support.submissions import RecordingOwner, RecordingSubmission

# ------------------------------------------------------------------------ RESP


def test_a_packed_command_can_be_taken_apart() -> None:
    command = pack("SET", b"\x00\r\n$3", 7, 1.5, "ü")
    assert unpacked(command) == [b"SET", b"\x00\r\n$3", b"7", b"1.5", "ü".encode()]


TRANSACTIONS = {
    "accepted": (
        b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:1\r\n+OK\r\n+OK\r\n$3\r\n7:1\r\n",
        [1],
        None,
    ),
    "touched": (b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*-1\r\n+OK\r\n$3\r\n7:1\r\n", None, None),
    "refused": (
        b"+OK\r\n-OOM no\r\n+QUEUED\r\n-EXECABORT x\r\n+OK\r\n$3\r\n7:1\r\n",
        None,
        "OOM no",
    ),
    "all refused": (
        b"+OK\r\n-OOM no\r\n-OOM no\r\n-EXECABORT x\r\n+OK\r\n$3\r\n7:1\r\n",
        None,
        "OOM no",
    ),
    "refused at the end": (
        b"+OK\r\n+QUEUED\r\n+QUEUED\r\n-READONLY x\r\n+OK\r\n$3\r\n7:1\r\n",
        None,
        "READONLY x",
    ),
}


async def respond(stream: trio.abc.Stream, *pieces: bytes) -> None:
    """Take a request and answer it in pieces that arrive one by one."""
    await stream.receive_some()
    for piece in pieces:
        await stream.send_all(piece)
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("case", TRANSACTIONS)
async def test_the_answer_to_a_commit_is_read_the_same_however_it_is_cut(case: str) -> None:
    answer, replies, refusal = TRANSACTIONS[case]
    wire = Wire(commit_key="c", owner_key="o", owner=b"me", lease_ms=1)
    submission = RecordingSubmission(RecordingOwner(), pack("INCR", "n"))
    batch = Batch(Form.TRANSACTION, sequence=1, entries=[(submission, 0.0)])
    for cut in range(len(answer)):
        ours, theirs = trio.testing.memory_stream_pair()
        connection = Connection(ours)
        # Twice, so that what is left over from one would disturb the next.
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(respond, theirs, answer[:cut], answer[cut:])
                got = await wire.send(connection, batch, before=b"7:0", after=b"7:1")
            assert (got.replies, got.refusal, got.commit) == (replies, refusal, b"7:1")
        assert connection.error_count == 2 * answer.count(b"\r\n-")


async def test_a_redis_that_does_not_run_transactions_is_not_believed() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    wire = Wire(commit_key="c", owner_key="o", owner=b"me", lease_ms=1)
    batch = Batch(Form.TRANSACTION, sequence=1, entries=[])
    await theirs.send_all(b"-NOPERM x\r\n+OK\r\n-ERR EXEC without MULTI\r\n+OK\r\n$3\r\n7:1\r\n")
    with pytest.raises(ConnectionLostError, match="transactions"):
        await wire.send(Connection(ours), batch, before=b"7:0", after=b"7:1")


async def test_bytes_that_are_not_resp_end_the_connection() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(ConnectionLostError, match="not a Redis reply"):
        await Connection(ours).call(pack("PING"), 1)


async def test_an_end_of_stream_is_a_lost_connection() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(ConnectionLostError):
        await Connection(ours).call(pack("PING"), 1)


# ------------------------------------------------------------------- ownership

HERE = this_process(address="", random=random.Random(0))


def test_an_owner_survives_its_description() -> None:
    assert OwnerProcess.from_json(HERE.to_json()) == HERE
    for text in (b"", b"{}", b"[]", b"hello", b'{"pid":"x"}'):
        assert OwnerProcess.from_json(text) is None


def test_a_live_process_is_not_gone() -> None:
    assert not is_gone(HERE, seen_from=HERE)


def test_a_process_that_ended_is_gone_also_as_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    owner = replace(HERE, pid=child.pid, started=1)
    assert child.stdout is not None
    child.stdout.read()  # its end closes it
    while not is_gone(owner, seen_from=HERE):
        pass
    child.wait()
    assert is_gone(owner, seen_from=HERE)
    child.stdout.close()


def test_a_process_whose_entry_cannot_be_read_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a hidden /proc (hidepid, a sandbox) taken for a dead owner."""
    monkeypatch.setattr(proc, "PROC", tmp_path)
    assert not is_gone(HERE, seen_from=HERE)
    assert not is_gone(replace(HERE, pid=1), seen_from=HERE)
    assert is_gone(replace(HERE, pid=2**22 + 1), seen_from=HERE)


@pytest.mark.parametrize("content", ["", "1 (x", "1 (x) R 1 2"])
def test_an_entry_that_makes_no_sense_is_nobodys_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(proc, "PROC", tmp_path)
    entry = tmp_path / str(HERE.pid)
    entry.mkdir()
    (entry / "stat").write_text(content)
    assert not is_gone(HERE, seen_from=HERE)
    assert not is_gone(replace(HERE, pid=2**70), seen_from=HERE)


def test_a_reused_process_id_is_another_process() -> None:
    assert is_gone(replace(HERE, started=HERE.started - 1), seen_from=HERE)


@pytest.mark.parametrize(
    "elsewhere", [{"host": "other"}, {"boot_id": "other"}, {"pid_namespace": "pid:[1]"}]
)
def test_nobody_elsewhere_is_pronounced_gone(elsewhere: dict[str, str]) -> None:
    owner = replace(HERE, pid=2**22 + 1, **elsewhere)  # type: ignore[arg-type]
    assert not is_gone(owner, seen_from=HERE)


def test_without_knowledge_of_the_system_nobody_is_pronounced_gone() -> None:
    blind = replace(HERE, boot_id="", pid_namespace="")
    assert not is_gone(replace(blind, pid=2**22 + 1), seen_from=blind)


# -------------------------------------------------------------------- wait_timeouts


@pytest.mark.parametrize(
    ("since_s", "deadline_s", "expected_s"),
    [
        (100.0, None, 105.0),
        (100.0, 200.0, 105.0),
        (100.0, 104.0, 103.6),
        (100.0, 100.2, 100.15),
        (100.0, 100.01, 99.96),
    ],
)
def test_callers_give_up_in_time_for_their_answer(
    since_s: float, deadline_s: float | None, expected_s: float
) -> None:
    assert give_up_at_s(since_s, deadline_s, 5.0) == pytest.approx(expected_s)


async def test_everyone_who_waits_gives_up_once_and_in_due_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    clock = SystemClock()
    wait_timeouts = WaitTimeouts(wait_timeout_s=5.0, clock=clock, address="here")
    wait_timeouts.reason = "gone"
    nursery.start_soon(wait_timeouts.run)
    now_s = clock.monotonic_s()
    owner = RecordingOwner()
    urgent = RecordingSubmission(owner, deadline_s=now_s + 2)
    patient = RecordingSubmission(owner)
    wait_timeouts.enrol(patient, now_s)
    await trio.sleep(1)
    wait_timeouts.enrol(urgent, now_s)
    await trio.sleep(3)
    assert [str(error) for error in urgent.give_ups] == ["Redis at here is away: gone"]
    assert not patient.give_ups
    await trio.sleep(3)
    assert len(patient.give_ups) == 1
    # It goes away once more before these have an outcome.
    wait_timeouts.enrol(urgent, now_s)
    await trio.sleep(10)
    assert len(urgent.give_ups) == 1
    assert wait_timeouts.given_up_count == 2


async def test_nobody_gives_up_once_redis_is_back(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    clock = SystemClock()
    wait_timeouts = WaitTimeouts(wait_timeout_s=5.0, clock=clock, address="here")
    nursery.start_soon(wait_timeouts.run)
    submission = RecordingSubmission(RecordingOwner())
    wait_timeouts.enrol(submission, clock.monotonic_s())
    await trio.sleep(1)
    wait_timeouts.clear()
    await trio.sleep(10)
    assert not submission.give_ups


# --------------------------------------------------------------------- the rest


def test_backoff_is_jittered_doubles_and_has_a_ceiling() -> None:
    settings = StoreSettings(backoff_s=0.1, backoff_max_s=1.0)
    highest = SimpleNamespace(uniform=lambda _, high: high)
    pauses = [backoff_s(n, settings, highest) for n in (0, 1, 2, 3, 4, 5, 6, 1_000_000)]  # type: ignore[arg-type]
    assert pauses == pytest.approx([0, 0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_event_ids_rise_also_when_the_clock_goes_back() -> None:
    times = [1.0, 1.0, 2.5, 0.5, 2.501]
    clock = SimpleNamespace(wall_s=lambda: times.pop(0), monotonic_s=lambda: 0.0)
    ids = EventIds(clock, b"999-7")
    assert [ids.next_id() for _ in range(5)] == [
        b"1000-0",
        b"1000-1",
        b"2500-0",
        b"2500-1",
        b"2501-0",
    ]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ({"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}, []),
        (
            {"appendonly": "yes", "appendfsync": "no", "maxmemory-policy": "noeviction"},
            ["appendfsync"],
        ),
        (
            {"appendonly": "no", "appendfsync": "no", "maxmemory-policy": "noeviction"},
            ["appendonly"],
        ),
        ({}, ["config-unreadable"]),
    ],
)
def test_unsafe_configurations_are_named(found: dict[str, str], names: list[str]) -> None:
    warnings = judge(found, Requirements()).warnings
    assert [warning.name for warning in warnings] == names
