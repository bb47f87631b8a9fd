"""Writes by the thousand, all in flight at once, and a record of what became of each.

A plain HTTP/2 client on Trio sockets, as small as possible: header blocks that are
always the same, responses remembered by their bytes. It keeps a thousand calls in flight
where a whole gRPC client spends its time on itself. Reports about one run, and heartbeats of one
agent, stay on one connection, so they arrive in the order in which they were issued.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio
from hpack import Decoder

from bench.load import frames
from dbos_actors.api import messages
from dbos_actors.api.messages import (
    Agent,
    MeasurementResult,
    ModuleState,
    RegisterAgentRequest,
    SetModuleStateRequest,
    StoreResultRequest,
)

ACKNOWLEDGED = "acknowledged"
UNKNOWN = "unknown"
"""Its connection ended before its answer came."""

_STATUS_NAMES = {"14": "UNAVAILABLE", "4": "DEADLINE_EXCEEDED", "8": "RESOURCE_EXHAUSTED"}


@dataclass(slots=True, eq=False)
class Write:
    """One call and what became of it."""

    method: str
    request: bytes
    agent: str
    subject: str
    """Result id, request id of a run, or nothing for a heartbeat."""
    number: int
    """Counts the writes about the same subject, from 1."""
    issued_s: float = 0.0
    settled_s: float = 0.0
    outcome: str = ""
    """Empty while in flight."""


@dataclass(slots=True)
class Load:
    """Everything that was written, over any number of servers and connections."""

    history: list[Write] = field(default_factory=list)
    keeps_history: bool = True
    """Off for loads of which only the answers count."""
    in_flight: int = 0
    acknowledged: int = 0
    _awaited: list[tuple[int, trio.Event]] = field(default_factory=list)
    _lives: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def run(
        self,
        address: str,
        *,
        connections: int = 3,
        in_flight_each: int = 400,
        deadline_s: float | None = None,
        stop: trio.Event | None = None,
        writes: Sequence[Iterator[Write]] | None = None,
    ) -> None:
        """Write until the server is gone, or, after ``stop``, until everything is answered.

        ``writes`` are what each connection is to write instead of a mixture without end.
        """
        life = next(self._lives)
        if writes is None:
            writes = [_writes(f"{life}-{number}") for number in range(connections)]
        async with trio.open_nursery() as nursery:
            for of_connection in writes:
                connection = _Connection(
                    self,
                    of_connection,
                    in_flight_max=in_flight_each,
                    deadline_s=deadline_s,
                    stop=trio.Event() if stop is None else stop,
                )
                nursery.start_soon(connection.run, address)

    async def wait_acknowledged(self, count: int) -> None:
        """Wait until so many writes have been acknowledged in all."""
        reached = trio.Event()
        self._awaited.append((count, reached))
        self._tell()
        with trio.fail_after(30):
            await reached.wait()

    def acknowledge(self) -> None:
        """Count one more."""
        self.acknowledged += 1
        if self._awaited:
            self._tell()

    def _tell(self) -> None:
        for one in list(self._awaited):
            count, reached = one
            if self.acknowledged >= count:
                reached.set()
                self._awaited.remove(one)

    def outcomes(self) -> Counter[str]:
        return Counter(write.outcome for write in self.history)


def data_of(number: int) -> bytes:
    """The data of the result with a number."""
    return b"%08d" % number * 25


def _writes(name: str) -> Iterator[Write]:
    """One connection's writes: results, progress of runs, heartbeats; each subject its own."""
    for number in itertools.count(1):
        agent = f"agent-{name}-{number % 5}"
        turn = number // 5
        match number % 4:
            case frames.DATA:
                run = f"run-{name}-{number % 5}-{turn // 200}"
                state = ModuleState(
                    agent_id=agent,
                    module_name=f"module-{turn // 200 % 2}",
                    request_id=run,
                    state="completed" if turn % 200 > 180 else "running",
                    details={"n": str(number)},
                )
                if state.state == "completed":
                    # A finished run stays as it is: only its first such report is a change.
                    state.request_id = run = f"{run}-{turn}"
                request: Any = SetModuleStateRequest(state=state)
                yield Write("SetModuleState", request.SerializeToString(), agent, run, number)
            case frames.HEADERS:
                record = Agent(id=agent, hostname="h", alive=True, total_heartbeats=number)
                request = RegisterAgentRequest(agent=record)
                yield Write("RegisterAgent", request.SerializeToString(), agent, "", number)
            case _:
                subject = f"result-{name}-{number}"
                result = MeasurementResult(
                    id=subject, agent_id=agent, module_name="ping", data=data_of(number)
                )
                request = StoreResultRequest(result=result)
                yield Write("StoreResult", request.SerializeToString(), agent, subject, number)


class _Connection:
    """One HTTP/2 connection that keeps a number of calls in flight (RFC 9113)."""

    def __init__(
        self,
        load: Load,
        writes: Iterator[Write],
        *,
        in_flight_max: int,
        deadline_s: float | None,
        stop: trio.Event,
    ) -> None:
        self._load = load
        self._writes = writes
        self._in_flight_max = in_flight_max
        self._stop = stop
        self._timeout = "" if deadline_s is None else f"{int(deadline_s * 1000)}m"
        self._open: dict[int, Write] = {}
        self._bodies: dict[int, bytes] = {}
        self._next_stream = 1
        self._window = frames.DEFAULT_WINDOW_BYTES
        self._may_issue = True
        self._all_settled = trio.Event()
        self._frames = frames.FrameReader()
        self._replies = b""
        self._statuses: dict[bytes, str | None] = {}
        self._decoder = Decoder()
        self._blocks: dict[str, bytes] = {}
        self._address = ""

    async def run(self, address: str) -> None:
        self._address = address
        host, _, port = address.rpartition(":")
        try:
            stream = await trio.open_tcp_stream(host, int(port))
        except OSError:
            return
        try:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_answered, nursery.cancel_scope)
                with suppress(trio.BrokenResourceError):
                    await self._exchange(stream)
                nursery.cancel_scope.cancel()
        finally:
            now = trio.current_time()
            for write in self._open.values():
                write.outcome, write.settled_s = UNKNOWN, now
            self._load.in_flight -= len(self._open)
            self._open.clear()

    async def _end_when_answered(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        self._may_issue = False
        if self._open:
            await self._all_settled.wait()
        scope.cancel()

    async def _exchange(self, stream: trio.SocketStream) -> None:
        # No limits on what comes in; then nothing need be remembered.
        await stream.send_all(frames.client_preface(frames.MAX_WINDOW_BYTES))
        while True:
            data = await stream.receive_some(256 * 1024)
            if not data:
                return
            for frame in self._frames.feed(bytes(data)):
                self._take(*frame)
            await stream.send_all(self._replies + self._more_calls())
            self._replies = b""

    def _more_calls(self) -> bytes:
        parts: list[bytes] = []
        now = trio.current_time()
        while self._may_issue and len(self._open) < self._in_flight_max and self._window > 1_024:
            write = next(self._writes, None)
            if write is None:
                self._stop.set()
                break
            write.issued_s = now
            self._window -= frames.GRPC_PREFIX_BYTES + len(write.request)
            stream = self._next_stream
            self._next_stream += 2
            self._open[stream] = write
            if self._load.keeps_history:
                self._load.history.append(write)
            self._load.in_flight += 1
            parts.append(frames.unary_call(stream, self._headers(write.method), write.request))
        return b"".join(parts)

    def _headers(self, method: str) -> bytes:
        block = self._blocks.get(method)
        if block is None:
            more = [("grpc-timeout", self._timeout)] if self._timeout else []
            headers = frames.RequestHeaders(f"/dbos.DBOS/{method}", self._address, 0, more=more)
            block = self._blocks[method] = headers.later
        return block

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        match kind:
            case frames.HEADERS:
                status = self._status(payload)
                if flags & frames.END_STREAM:
                    self._settle(stream, status)
            case frames.DATA:
                self._bodies[stream] = self._bodies.get(stream, b"") + payload
            case frames.RST_STREAM:
                self._settle(stream, f"reset {int.from_bytes(payload, 'big')}")
            case frames.SETTINGS if not flags & frames.ACK:
                self._replies += frames.frame(frames.SETTINGS, frames.ACK, 0)
            case frames.PING if not flags & frames.ACK:
                self._replies += frames.frame(frames.PING, frames.ACK, 0, payload)
            case frames.GOAWAY:
                self._may_issue = False
            case frames.WINDOW_UPDATE if stream == 0:
                self._window += int.from_bytes(payload, "big")

    def _status(self, block: bytes) -> str | None:
        """The grpc-status in a header block, if it is one of trailers."""
        if block not in self._statuses:
            headers: dict[Any, Any] = dict(self._decoder.decode(block))
            self._statuses[block] = headers.get("grpc-status")
        return self._statuses[block]

    def _settle(self, stream: int, status: str | None) -> None:
        write = self._open.pop(stream, None)
        body = self._bodies.pop(stream, b"")
        if write is None:
            return
        self._load.in_flight -= 1
        if not self._open and not self._may_issue:
            self._all_settled.set()
        write.settled_s = trio.current_time()
        if status != "0":
            write.outcome = _STATUS_NAMES.get(str(status), f"status {status}")
        elif body[5:7] == b"\x08\x01":  # success = true
            write.outcome = ACKNOWLEDGED
            self._load.acknowledge()
        else:
            response = getattr(messages, f"{write.method}Response").FromString(body[5:])
            write.outcome = f"refused: {response.error}"
