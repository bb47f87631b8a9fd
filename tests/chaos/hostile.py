"""``python -m tests.chaos.hostile``: clients that mean harm, and how everyone else fares.

Each scenario has a server and a Valkey of its own, and a probe (`tests.chaos.stage`): a client
that behaves. The server asks for tokens and the probe has one; the attackers have one where their
attack needs it. The probe's p99 meanwhile must stay within three times of its p99 alone, and the
server's memory within the bound that is named.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import selectors
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.load import frames
from dbos_actors.api import messages
from tests.chaos.inspected import resident_bytes
from tests.chaos.stage import MB, Report, Stage, connected, publish, served, stage, told
from tests.support.result_files import add_result_option, command_line, kept_in

TOKEN: Final = "token-of-these-tests"
AUTHORIZATION: Final = (("authorization", f"Bearer {TOKEN}"),)
MIB: Final = 1 << 20

# On two cores the attackers take time from the server that no bound of the server's can give back:
# 10 ms is what a busy machine adds by itself.
PROBE_P99_MS: Final = 10.0


@contextmanager
def guarded_stage() -> Iterator[Stage]:
    """A stage whose server knows one token."""
    with tempfile.TemporaryDirectory() as directory:
        tokens = Path(directory) / "tokens"
        tokens.write_text(f"{TOKEN}\n")
        with stage(token=TOKEN, variables={"DBOS_AUTH_TOKEN_FILE": str(tokens)}) as on:
            yield on


# ------------------------------------------------------------------- clients


def headers(
    path: str, stream_id: int = 1, *, more: Sequence[tuple[str, str]] = AUTHORIZATION
) -> bytes:
    """A call's headers, as literals, so that no table has to be kept."""
    block = frames.RequestHeaders(path, "hostile", 0, more=more).later
    return frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block)


class Sender:
    """One call whose client sends the same bytes over and over, and takes no answer.

    It keeps to the windows that the server grants, and grants none itself: so its answers wait in
    the server, and the connection is never at fault.
    """

    def __init__(self, address: str, headers_frame: bytes, first: bytes, piece: bytes) -> None:
        self.socket = connected(address)
        self._piece = piece
        self._position = 0
        self._windows = {0: frames.DEFAULT_WINDOW_BYTES, 1: frames.DEFAULT_WINDOW_BYTES}
        self._frames = frames.FrameReader()
        self._unsent = (
            frames.PREFACE
            + frames.settings({frames.SETTING_INITIAL_WINDOW_SIZE: 0})
            + headers_frame
        )
        if first:
            self._unsent += self._data(first)
        self.sent_bytes = 0
        self.is_over = False
        self.socket.setblocking(False)

    def _data(self, body: bytes) -> bytes:
        for stream in self._windows:
            self._windows[stream] -= len(body)
        return frames.frame(frames.DATA, 0, 1, body)

    @property
    def wanted(self) -> int:
        """What it waits for: room in the socket while something is unsent, or a window."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)

    def write(self) -> None:
        """Send what the socket and the windows take."""
        while True:
            if not self._unsent:
                room = min(16_384, *self._windows.values(), len(self._piece) - self._position)
                if room <= 0:
                    return
                self._unsent = self._data(self._piece[self._position : self._position + room])
                self._position = (self._position + room) % len(self._piece)
            try:
                sent = self.socket.send(self._unsent)
            except BlockingIOError:
                return
            self.sent_bytes += sent
            self._unsent = self._unsent[sent:]

    def read(self) -> None:
        """Take the windows and settings that the server sends; nothing else can come."""
        try:
            received = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        self.is_over = not received
        for frame in self._frames.feed(received):
            self._take(*frame)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._windows[stream] += int.from_bytes(payload, "big")
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            granted = frames.parse_settings(payload).get(frames.SETTING_INITIAL_WINDOW_SIZE)
            if granted is not None:
                self._windows[1] += granted - frames.DEFAULT_WINDOW_BYTES
            self._unsent += frames.frame(frames.SETTINGS, frames.ACK, 0)
        elif kind in (frames.RST_STREAM, frames.GOAWAY):
            self.is_over = True


def send_for(senders: Sequence[Sender], duration_s: float) -> None:
    """Have all of them send as fast as they may; those whose call has ended are left alone."""
    end = time.monotonic() + duration_s
    with selectors.DefaultSelector() as selector:
        for sender in senders:
            selector.register(sender.socket, sender.wanted, sender)
        while time.monotonic() < end:
            for key, _ in selector.select(0.2):
                sender = key.data
                try:
                    sender.read()
                    sender.write()
                except OSError:
                    sender.is_over = True
                if sender.is_over:
                    selector.unregister(sender.socket)
                elif sender.wanted != key.events:
                    selector.modify(sender.socket, sender.wanted, sender)


# ----------------------------------------------------------------- scenarios


def unread(path: str, first: bytes, piece: bytes, clients: int, limit_bytes: int) -> Report:
    """Clients whose messages are all refused, and who do not read the refusals."""
    name = path.rpartition("/")[2]
    report = Report(f"{name}: refused messages, answers unread, clients: {clients:,}")
    with guarded_stage() as on, ExitStack() as stack:
        calm = on.baseline()
        report.add("alone", told(calm))
        senders = [Sender(on.address, headers(path), first, piece) for _ in range(clients)]
        for sender in senders:
            stack.enter_context(sender.socket)
        send_for(senders, 0.0)
        time.sleep(1.0)
        connections_bytes = resident_bytes(on.server.pid)
        begin = time.perf_counter()
        send_for(senders, 6.0)
        served(report, on.probe.between(begin, time.perf_counter()), calm, limit_ms=PROBE_P99_MS)
        time.sleep(1.0)
        grown = on.watch.most - connections_bytes
        add_senders(report, senders)
        report.add(
            "server's memory grew by at most",
            f"{grown / MB:.1f} MB",
            f"< {limit_bytes / MB:.0f}",
            ok=grown < limit_bytes,
        )
    return report


def refused_results() -> bytes:
    """Messages of StoreResults that are refused for their long ids."""
    result = messages.MeasurementResult(id="i" * 300, agent_id="a" * 200_000, module_name="m")
    return frames.message(messages.StoreResultRequest(result=result).SerializeToString())


def unknown_acknowledgements() -> bytes:
    """Messages of SubscribeTasks that are each answered with a failed outcome."""
    acknowledge = messages.SubscribeTasksRequest.Ack(task_id="t" * 250, lease_token="x" * 250)
    request = messages.SubscribeTasksRequest(ack=acknowledge).SerializeToString()
    return frames.message(request) * 100


def subscription() -> bytes:
    start = messages.SubscribeTasksRequest.Start(max_in_flight=10)
    return frames.message(messages.SubscribeTasksRequest(start=start).SerializeToString())


def watchers(connections: int, each: int) -> Report:
    """Health watches, which need no token, as many as the server takes."""
    report = Report(f"{connections} connections of {each:,} health watches, without a token")
    with guarded_stage() as on, ExitStack() as stack:
        calm = on.baseline()
        report.add("alone", told(calm))
        begin = time.perf_counter()
        for _ in range(connections):
            one = stack.enter_context(connected(on.address))
            streams = range(1, 2 * each, 2)
            one.sendall(frames.client_preface())
            one.sendall(
                b"".join(
                    headers("/grpc.health.v1.Health/Watch", stream, more=())
                    + frames.data(stream, frames.message(b""), end=True)
                    for stream in streams
                )
            )
        time.sleep(3.0)
        served(report, on.probe.between(begin, time.perf_counter()), calm, limit_ms=PROBE_P99_MS)
        add_failures(report, on)
    return report


def cut_subscriptions(waves: int, streams: int) -> Report:
    """Waves of SubscribeTasks streams that are cut as soon as they stand."""
    report = Report(f"{waves} waves of {streams:,} SubscribeTasks streams, each cut")
    with guarded_stage() as on:
        calm = on.baseline()
        report.add("alone", told(calm))
        begin = time.perf_counter()
        each = 100
        for _ in range(waves):
            with ExitStack() as stack:
                for _ in range(streams // each):
                    one = stack.enter_context(connected(on.address))
                    one.sendall(frames.client_preface())
                    one.sendall(
                        b"".join(
                            headers("/dbos.DBOS/SubscribeTasks", stream)
                            + frames.data(stream, subscription())
                            for stream in range(1, 2 * each, 2)
                        )
                    )
                time.sleep(1.0)
            time.sleep(0.5)
        meanwhile = on.probe.between(begin, time.perf_counter())
        report.add("others", told(meanwhile))
        time.sleep(15.0)
        begin = time.perf_counter() - 5.0
        served(report, on.probe.between(begin, time.perf_counter()), calm, limit_ms=PROBE_P99_MS)
        resident = resident_bytes(on.server.pid)
        report.add(
            "server's memory afterwards", f"{resident / MB:.0f} MB", "< 250", ok=resident < 250 * MB
        )
        add_failures(report, on)
    return report


def idle_strangers(descriptors: int) -> Report:
    """Connections that take every descriptor, and a Redis that restarts meanwhile."""
    report = Report(f"Idle connections on a server with {descriptors:,} descriptors")
    with guarded_stage() as on, ExitStack() as stack:
        resource.prlimit(on.server.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
        report.add("alone", told(on.baseline()))
        for _ in range(descriptors + 500):
            one = stack.enter_context(connected(on.address))
            one.sendall(frames.client_preface())
        time.sleep(2.0)
        on.valkey.kill()
        on.valkey.start()
        begin = time.perf_counter()
        give_up_at = begin + 20.0
        while not on.probe.between(begin, give_up_at) and time.perf_counter() < give_up_at:
            time.sleep(0.05)
        took = time.perf_counter() - begin
        report.add("served again after Redis restarted", f"{took:.1f} s", "< 10 s", ok=took < 10)
    return report


def bombs(streams: int, unpacked_bytes: int) -> Report:
    """Small messages that become large when they are decompressed."""
    report = Report(f"{streams} streams of messages that unpack to {unpacked_bytes / MB:.0f} MB")
    packed = frames.message(gzip.compress(bytes(unpacked_bytes)), compressed=True)
    with guarded_stage() as on, ExitStack() as stack:
        calm = on.baseline()
        report.add("alone", told(calm))
        more = (*AUTHORIZATION, ("grpc-encoding", "gzip"))
        opening = headers("/dbos.DBOS/StoreResults", more=more)
        senders = [Sender(on.address, opening, b"", packed) for _ in range(streams)]
        for sender in senders:
            stack.enter_context(sender.socket)
        begin = time.perf_counter()
        send_for(senders, 6.0)
        served(report, on.probe.between(begin, time.perf_counter()), calm, limit_ms=PROBE_P99_MS)
        add_senders(report, senders)
        grown = on.watch.most - on.watch.before
        report.add(
            "server's memory grew by at most", f"{grown / MB:.0f} MB", "< 128", ok=grown < 128 * MB
        )
    return report


def add_senders(report: Report, senders: Sequence[Sender]) -> None:
    sent = sum(sender.sent_bytes for sender in senders) / MB
    over = sum(sender.is_over for sender in senders)
    report.add("sent", f"{sent:,.1f} MB; {over:,} calls were ended by the server")


def add_failures(report: Report, on: Stage) -> None:
    failures = on.probe.failures
    shown = f"{len(failures)}" + (f", first {failures[0][1]}" if failures else "")
    report.add("calls of the probe that failed", shown, "0", ok=not failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: every limit is kept."""
    scenarios: dict[str, Callable[[], Report]] = {
        "results-1": lambda: unread("/dbos.DBOS/StoreResults", b"", refused_results(), 1, 8 * MIB),
        "results-1000": lambda: unread(
            "/dbos.DBOS/StoreResults", b"", refused_results(), 1_000, 512 * MIB
        ),
        "tasks-1": lambda: unread(
            "/dbos.DBOS/SubscribeTasks", subscription(), unknown_acknowledgements(), 1, 8 * MIB
        ),
        "tasks-1000": lambda: unread(
            "/dbos.DBOS/SubscribeTasks",
            subscription(),
            unknown_acknowledgements(),
            1_000,
            512 * MIB,
        ),
        "watchers": lambda: watchers(130, 1_000),
        "cut": lambda: cut_subscriptions(10, 10_000),
        "descriptors": lambda: idle_strangers(1_500),
        "bombs": lambda: bombs(20, 4_000_000),
    }
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.hostile", description=__doc__)
    parser.add_argument("--only", action="append", choices=scenarios)
    add_result_option(parser)
    options = parser.parse_args(arguments)
    reports = []
    for name in options.only or scenarios:
        print(name, file=sys.stderr)
        reports.append(scenarios[name]())
    with kept_in(options.result, command_line("tests.chaos.hostile", arguments)):
        return publish(reports)


if __name__ == "__main__":
    sys.exit(main())
