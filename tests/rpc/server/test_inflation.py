"""What gzip lets a client ask for: bounded by what comes out, not by what was sent."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.server.authentication import Refusal
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.framing import frame
from tests.support.blob import Blob

MakePipe = Callable[..., Any]

MESSAGE_BYTES = 4 << 20
BOMB = frame(gzip.compress(bytes(MESSAGE_BYTES)), compressed=True)
"""4 KB that become a message of the largest size."""


class Collect:
    """A method whose handlers the tests play themselves."""

    async def collect(self, stream: Any) -> None:
        raise AssertionError

    def __mapping__(self) -> dict[str, Handler]:
        return {"/test.Test/Collect": Handler(self.collect, Cardinality.STREAM_STREAM, Blob, Blob)}


def send(pipe: Any, data: bytes, path: bytes = b"/test.Test/Echo", *, end: bool = True) -> int:
    stream: int = pipe.client.request(None, end=False, path=path, grpc_encoding=b"gzip")
    pipe.client.send(stream, data, end=end)
    return stream


def test_twenty_streams_of_bombs_are_inflated_within_the_connections_budget(
    make_pipe: MakePipe,
) -> None:
    pipe = make_pipe({}, services=[Collect()])
    for _ in range(20):
        send(pipe, BOMB * 14, b"/test.Test/Collect")
    pipe.run()
    calls: list[StreamCall] = pipe.started
    held, refused = [], []
    for call in calls:
        try:
            held += call.take_many(500)
        except GRPCError as error:
            refused.append(error)
    assert len(calls) == 20
    assert sum(map(len, held)) == pipe.core.limits.inflated_bytes_max
    assert len(refused) == 16
    assert {error.status for error in refused} == {Status.RESOURCE_EXHAUSTED}
    for call in calls:
        call.end(Status.OK)
        call.finished()
    assert pipe.core.inflated_free == pipe.core.limits.inflated_bytes_shared


def test_a_handler_that_takes_one_message_after_the_other_gets_them_all(
    make_pipe: MakePipe,
) -> None:
    pipe = make_pipe({}, services=[Collect()])
    send(pipe, BOMB * 14 + frame(b"plain"), b"/test.Test/Collect")
    pipe.run()
    (call,) = pipe.started
    sizes: list[int] = []
    while bodies := call.take_many(500):
        assert sum(map(len, bodies)) <= MESSAGE_BYTES + len(b"plain")
        sizes += map(len, bodies)
    assert sizes == [MESSAGE_BYTES] * 14 + [5]
    assert pipe.core.inflated_free == pipe.core.limits.inflated_bytes_shared


def test_a_handler_that_outlives_its_call_keeps_its_share(make_pipe: MakePipe) -> None:
    pipe = make_pipe({}, services=[Collect()])
    stream = send(pipe, BOMB, b"/test.Test/Collect", end=False)
    pipe.run()
    (call,) = pipe.started
    assert call.take() is not None
    pipe.client.reset(stream)
    pipe.run()
    assert call.over
    free = pipe.core.limits.inflated_bytes_shared
    assert pipe.core.inflated_free == free - MESSAGE_BYTES
    call.finished()
    assert pipe.core.inflated_free == free


def test_unary_calls_that_wait_are_inflated_within_the_connections_budget(
    make_pipe: MakePipe,
) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append})
    streams = [send(pipe, BOMB) for _ in range(100)]
    pipe.run()
    assert sum(len(call.request) for call in calls) == pipe.core.limits.inflated_bytes_max
    refused = [s for s in streams if pipe.client.answers[s].closed]
    assert len(refused) == 96
    for stream in refused:
        answer = pipe.client.answers[stream]
        assert answer.status is Status.RESOURCE_EXHAUSTED
        assert answer.message.startswith("decompressed messages")
    calls[0].reply(b"")
    pipe.core.flush()
    more = send(pipe, BOMB)
    pipe.run()
    assert not pipe.client.answers[more].closed
    pipe.server.lost()
    assert pipe.core.inflated_free == pipe.core.limits.inflated_bytes_shared


def test_all_connections_together_are_bounded_and_plain_messages_pass(make_pipe: MakePipe) -> None:
    limits = ServerLimits(inflated_bytes_shared=MESSAGE_BYTES + 100)
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append}, limits=limits)
    send(pipe, BOMB)
    late = send(pipe, BOMB)
    plain = pipe.client.request(bytes(100_000))
    small = send(pipe, frame(gzip.compress(b"x" * 100), compressed=True))
    pipe.run()
    assert pipe.client.answers[late].status is Status.RESOURCE_EXHAUSTED
    for stream in (plain, small):
        assert not pipe.client.answers[stream].closed
    assert sorted(len(call.request) for call in calls) == [100, 100_000, MESSAGE_BYTES]


def test_one_message_of_the_largest_size_always_has_a_place(make_pipe: MakePipe) -> None:
    limits = ServerLimits(inflated_bytes_max=1_000)
    pipe = make_pipe({"Echo": lambda call: call.reply(b"%d" % len(call.request))}, limits=limits)
    for _ in range(3):
        stream = send(pipe, BOMB)
        pipe.run()
        assert pipe.client.answers[stream].body == frame(b"%d" % MESSAGE_BYTES)


class Nobody:
    """Knows no client."""

    def identify(
        self, headers: Mapping[bytes, bytes], certificate_names: Sequence[str]
    ) -> Hashable | None:
        return None

    def is_valid(self, client: Hashable) -> bool:
        return False

    def admit(self, client: Hashable, path: bytes, now_s: float) -> Refusal | None:
        return None

    def charge(self, client: Hashable, messages: int, size_bytes: int) -> None:
        pass

    def delay_s(self, client: Hashable, now_s: float) -> float:
        return 0.0

    def denial(self, client: Hashable, path: bytes) -> str | None:
        return None


def test_a_call_without_a_token_is_refused_before_its_message_is_inflated(
    make_pipe: MakePipe,
) -> None:
    pipe = make_pipe(
        {"Echo": lambda call: call.reply(b"")}, services=[Collect()], authenticator=Nobody()
    )
    for path in (b"/test.Test/Echo", b"/test.Test/Collect"):
        stream = send(pipe, frame(b"no gzip", compressed=True), path)
        pipe.run()
        assert pipe.client.answers[stream].status is Status.UNAUTHENTICATED
    assert not pipe.started
