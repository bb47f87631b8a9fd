"""Tasks by the hundred thousand: scheduled in bulk, pushed to subscribers, acknowledged.

Clients as small as possible, on plain Trio sockets (see `bench.recorded_writes`), so that what is
measured is the server. ``python -m bench.task_load --help`` runs the full sizes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import trio
from hpack import Decoder

from bench.load import frames
from bench.recorded_writes import Load, Write
from bench.servers import OURS, Process, scratch_directory, start_server, start_valkey
from dbos_actors.api.messages import (
    MeasurementResult,
    ScheduleTaskRequest,
    StoreResultRequest,
    SubscribeTasksRequest,
    SubscribeTasksResponse,
    Task,
)

PAYLOAD = b'{"target":"192.0.2.1","packets":3,"size":64,"interval":1000}'


class RawStream:
    """One streaming call on a connection of its own (RFC 9113)."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._frames = frames.FrameReader()
        self._body = b""
        self._connection_window = self._window = frames.DEFAULT_WINDOW_BYTES
        self._granted = trio.Event()
        self._ungranted = 0
        self._decoder = Decoder()
        self._control = b""
        self._outgoing = trio.Lock()
        self.status: str | None = None

    @classmethod
    async def open(cls, address: str, method: str) -> Self:
        host, _, port = address.rpartition(":")
        call = cls(await trio.open_tcp_stream(host, int(port)))
        block = frames.RequestHeaders(f"/dbos.DBOS/{method}", address, 0).later
        await call._stream.send_all(
            frames.client_preface(frames.MAX_WINDOW_BYTES)
            + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
        )
        return call

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages, several to a frame."""
        data = b"".join(map(frames.message, messages))
        async with self._outgoing:
            while data:
                size = min(
                    len(data), frames.DEFAULT_FRAME_BYTES, self._window, self._connection_window
                )
                if size <= 0:
                    self._granted = trio.Event()
                    await self._granted.wait()
                    continue
                self._window -= size
                self._connection_window -= size
                await self._stream.send_all(frames.frame(frames.DATA, 0, 1, data[:size]))
                data = data[size:]

    async def receive(self) -> list[bytes]:
        """The messages that one read brought, at least one; none when the call is over."""
        messages: list[bytes] = []
        while not messages and self.status is None:
            data = await self._stream.receive_some(1 << 18)
            if not data:
                self.status = "closed"
                break
            for frame in self._frames.feed(bytes(data)):
                self._take(*frame)
            if self._control:
                async with self._outgoing:
                    control, self._control = self._control, b""
                    await self._stream.send_all(control)
            at = 0
            while len(self._body) - at >= 5:
                end = at + 5 + int.from_bytes(self._body[at + 1 : at + 5], "big")
                if end > len(self._body):
                    break
                messages.append(self._body[at + 5 : end])
                at = end
            self._body = self._body[at:]
        return messages

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        match kind:
            case frames.DATA:
                self._body += payload
                self._ungranted += len(payload)
                if self._ungranted > 1 << 28:
                    self._control += frames.window_update(0, self._ungranted)
                    self._control += frames.window_update(1, self._ungranted)
                    self._ungranted = 0
            case frames.HEADERS:
                headers: dict[Any, Any] = dict(self._decoder.decode(payload))
                if flags & frames.END_STREAM:
                    self.status = headers.get("grpc-status", "?")
            case frames.RST_STREAM | frames.GOAWAY:
                self.status = f"frame {kind}"
            case frames.SETTINGS if not flags & frames.ACK:
                window = frames.parse_settings(payload).get(frames.SETTING_INITIAL_WINDOW_SIZE)
                if window is not None:
                    self._window += window - frames.DEFAULT_WINDOW_BYTES
                self._control += frames.frame(frames.SETTINGS, frames.ACK, 0)
                self._granted.set()
            case frames.PING if not flags & frames.ACK:
                self._control += frames.frame(frames.PING, frames.ACK, 0, payload)
            case frames.WINDOW_UPDATE:
                increment = int.from_bytes(payload, "big")
                if stream:
                    self._window += increment
                else:
                    self._connection_window += increment
                self._granted.set()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


# ------------------------------------------------------------------ scheduling


def schedules(
    numbers: Iterator[int], *, prefix: str, due_at: int | Sequence[int], agents: int = 1_000
) -> Iterator[Write]:
    """ScheduleTask calls; ``due_at`` for all, or one after another for each."""
    for number in numbers:
        task = Task(
            id=f"{prefix}-{number:08}",
            agent_id=f"agent-{number % agents:05}",
            module_name="ping",
            payload=PAYLOAD,
            scheduled_at=due_at if isinstance(due_at, int) else due_at[number % len(due_at)],
        )
        request = ScheduleTaskRequest(task=task).SerializeToString()
        yield Write("ScheduleTask", request, task.agent_id, task.id, number)


async def schedule_many(
    address: str, count: int, *, prefix: str = "task", due_at: int | Sequence[int] = 0
) -> float:
    """Schedule so many tasks durably; how long it took, in seconds."""
    load = Load(keeps_history=False)
    began_s = time.perf_counter()
    writes = [schedules(iter(range(n, count, 4)), prefix=prefix, due_at=due_at) for n in range(4)]
    async with trio.open_nursery() as nursery:
        for of_connection in writes:
            nursery.start_soon(
                partial(load.run, address, writes=[of_connection], in_flight_each=500)
            )
    assert load.acknowledged == count, (load.acknowledged, count)
    return time.perf_counter() - began_s


# ----------------------------------------------------------------- subscribing

Figures = dict[str, float]


@dataclass(slots=True)
class Deliveries:
    """What subscribers were pushed and have settled, over any number of them."""

    pushed: Counter[str] = field(default_factory=Counter)
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Task id -> how often it had been pushed when its acknowledgement was granted."""
    refused: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """Pushed although an acknowledgement had been granted before: never."""
    lateness_s: list[float] = field(default_factory=list)
    _news: trio.Event = field(default_factory=trio.Event)

    async def subscribe(
        self, address: str, *, max_in_flight: int = 1_000, lease_seconds: int = 60, **start: Any
    ) -> None:
        """Take and acknowledge tasks until the stream ends, or cancelled."""
        call = await RawStream.open(address, "SubscribeTasks")
        try:
            wanted = SubscribeTasksRequest.Start(
                max_in_flight=max_in_flight, lease_seconds=lease_seconds, **start
            )
            # Sent by a task of its own: who waits for the peer to grant more must read on.
            sender, receiver = trio.open_memory_channel[list[bytes]](math.inf)
            sender.send_nowait([SubscribeTasksRequest(start=wanted).SerializeToString()])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_all, call, receiver)
                while bodies := await call.receive():
                    acks: list[bytes] = []
                    now_s = time.time()
                    for body in bodies:
                        self._take(SubscribeTasksResponse.FromString(body), acks, now_s)
                    self._news.set()
                    if acks:
                        sender.send_nowait(acks)
                nursery.cancel_scope.cancel()
        finally:
            await call.aclose()

    def _take(self, response: SubscribeTasksResponse, acks: list[bytes], now_s: float) -> None:
        for task in response.tasks:
            task_id = task.id
            if task_id in self.acknowledged:
                self.again.append(task_id)
            self.pushed[task_id] += 1
            if not task.retry_count:
                self.lateness_s.append(now_s - task.scheduled_at)
            token = task.lease_token
            ack = b"\x0a%c%b\x12\x10%b" % (len(task_id), task_id.encode(), token.encode())
            acks.append(b"\x12%c%b" % (len(ack), ack))
        for outcome in response.outcomes:
            if outcome.success:
                self.acknowledged[outcome.task_id] = self.pushed[outcome.task_id]
            else:
                self.refused.append(outcome.error)

    def check(self) -> None:
        """Every task was pushed once, not early, and its acknowledgement granted."""
        assert set(self.pushed.values()) == {1}
        assert not self.refused
        assert min(self.lateness_s) >= 0.0

    def lateness(self) -> Figures:
        """From falling due to being received."""
        return {
            f"lateness_ms_p{share}": percentile(self.lateness_s, share / 100) * 1000
            for share in (50, 99)
        }

    async def wait_acknowledged(self, count: int, *, timeout_s: float = 120) -> None:
        with trio.fail_after(timeout_s):
            while len(self.acknowledged) < count:
                self._news = trio.Event()
                await self._news.wait()


async def _send_all(call: RawStream, batches: trio.MemoryReceiveChannel[list[bytes]]) -> None:
    async for batch in batches:
        await call.send(batch)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.floor(len(values) * share))]


# ----------------------------------------------------------------------- runs


@contextmanager
def valkey_in(directory: Path) -> Iterator[Process]:
    """A Valkey that syncs each write, so that a measurement pays for durability."""
    valkey = start_valkey(directory, appendfsync="always")
    try:
        yield valkey
    finally:
        valkey.stop(kill=True)


@contextmanager
def server_on(valkey: Process, directory: Path) -> Iterator[Process]:
    """A server on that Valkey, ready to be called."""
    server = start_server(OURS, valkey.address, directory)
    try:
        yield server
    finally:
        server.stop(kill=True)


@contextmanager
def served() -> Iterator[Process]:
    """A server on a Valkey of its own."""
    with (
        scratch_directory() as directory,
        valkey_in(directory) as valkey,
        server_on(valkey, directory) as server,
    ):
        yield server


async def drain_run(tasks: int, subscribers: int) -> Figures:
    """Tasks that fall due in the same second, pushed to subscribers that acknowledge."""
    with served() as server:
        address = server.address
        due_at = int(time.time()) + 5 + tasks // 4_000
        took_s = await schedule_many(address, tasks, due_at=due_at)
        assert time.time() < due_at, "scheduling took longer than planned"
        found = Deliveries()
        async with trio.open_nursery() as nursery:
            for _ in range(subscribers):
                nursery.start_soon(found.subscribe, address)
            await trio.sleep(max(0.0, due_at - time.time()))
            began_s = time.perf_counter()
            await found.wait_acknowledged(tasks)
            drained_s = time.perf_counter() - began_s
            nursery.cancel_scope.cancel()
        found.check()
        return {
            "tasks": tasks,
            "scheduled_per_s": tasks / took_s,
            "drained_per_s": tasks / drained_s,
            **found.lateness(),
            "rss_mib": server.usage().resident_bytes / (1 << 20),
        }


async def steady_run(per_second: int, seconds: int, subscribers: int, results: int = 0) -> Figures:
    """So many tasks due in every second for a while, and how late they are pushed.

    :param results: StoreResult calls in flight beside it, all the time.
    """
    with served() as server:
        count = per_second * seconds
        first = int(time.time()) + 5 + count // 4_000
        await schedule_many(server.address, count, due_at=[first + n for n in range(seconds)])
        found = Deliveries()
        beside = Load(keeps_history=False)
        async with trio.open_nursery() as nursery:
            if results:
                nursery.start_soon(
                    partial(beside.run, server.address, writes=[_results()], in_flight_each=results)
                )
            for _ in range(subscribers):
                nursery.start_soon(found.subscribe, server.address)
            await found.wait_acknowledged(count, timeout_s=60 + seconds + count // 4_000)
            nursery.cancel_scope.cancel()
        found.check()
        return {"tasks": count, **found.lateness(), "results_beside": beside.acknowledged}


def _results() -> Iterator[Write]:
    for number in itertools.count():
        result = MeasurementResult(
            id=f"r{number}", agent_id=f"agent-{number % 1_000}", module_name="ping", data=PAYLOAD
        )
        request = StoreResultRequest(result=result).SerializeToString()
        yield Write("StoreResult", request, result.agent_id, result.id, number)


async def recovery_run(tasks: int) -> Figures:
    """Pending tasks, a ``kill -9``, and what the next server takes to have them back."""
    with scratch_directory() as directory, valkey_in(directory) as valkey:
        with server_on(valkey, directory) as server:
            due_at = [int(time.time()) + 86_400 + n for n in range(3_600)]
            took_s = await schedule_many(server.address, tasks, due_at=due_at)
            before = server.usage().resident_bytes
            server.stop(kill=True)
        with server_on(valkey, directory) as server:
            assert server.log is not None
            log = server.log.read_text().splitlines()
            line = [one for one in log if "tasks_recovered" in one][-1]
            words = dict(word.split("=") for word in line.split() if "=" in word)
            assert int(words["tasks"]) == tasks, line
            return {
                "tasks": tasks,
                "scheduled_per_s": tasks / took_s,
                "rss_before_mib": before / (1 << 20),
                "recovery_s": float(words["seconds"]),
                "recovery_cpu_s": float(words["cpu_seconds"]),
                "journal_entries": float(words["journal_entries"]),
                "rss_mib": server.usage().resident_bytes / (1 << 20),
            }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", choices=["drain", "steady", "recovery"])
    parser.add_argument("--tasks", type=int, help="in all; of steady, a second")
    parser.add_argument("--subscribers", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--results", type=int, default=0, help="of steady: StoreResults in flight")
    options = parser.parse_args()
    match options.run:
        case "drain":
            figures = trio.run(drain_run, options.tasks or 100_000, options.subscribers)
        case "steady":
            run = partial(
                steady_run,
                options.tasks or 1_000,
                options.seconds,
                options.subscribers,
                options.results,
            )
            figures = trio.run(run)
        case _:
            figures = trio.run(recovery_run, options.tasks or 1_000_000)
    for name, value in figures.items():
        print(f"{name:20} {value:,.3f}".rstrip("0").rstrip("."))


if __name__ == "__main__":
    main()
