from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from grpclib.const import Status

from dbos_actors.rpc.server.keepalive import Keepalive, KeepalivePolicy
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.http2 import ErrorCode
from dbos_actors.rpc.wire.keepalive import Action

MakePipe = Callable[..., Any]
Handler = Callable[[UnaryCall], None]


def greeted(policy: KeepalivePolicy, *, age_factor: float = 1.0) -> Keepalive:
    keepalive = Keepalive(policy, 0.0, age_factor=age_factor)
    keepalive.greeted = True
    return keepalive


def test_a_client_that_says_nothing_at_all_is_closed() -> None:
    keepalive = Keepalive(KeepalivePolicy(handshake_s_max=120), 0.0)
    assert keepalive.tick(119.9, busy=False) is Action.NOTHING
    assert keepalive.tick(120, busy=False) is Action.CLOSE


def test_a_silent_client_is_pinged_and_closed_if_it_does_not_answer() -> None:
    policy = KeepalivePolicy(silence_s_max=100, answer_s_max=20)
    keepalive = greeted(policy)
    assert keepalive.tick(99, busy=True) is Action.NOTHING
    assert keepalive.tick(100, busy=True) is Action.PING
    assert keepalive.tick(119, busy=True) is Action.NOTHING
    assert keepalive.tick(120, busy=True) is Action.CLOSE


def test_a_silent_client_that_answers_its_ping_stays() -> None:
    keepalive = greeted(KeepalivePolicy(silence_s_max=100, answer_s_max=20))
    assert keepalive.tick(100, busy=True) is Action.PING
    keepalive.heard_s = 101
    assert keepalive.tick(121, busy=True) is Action.NOTHING
    assert keepalive.tick(201, busy=True) is Action.PING


def test_an_idle_connection_is_drained_and_one_with_calls_or_responses_is_not() -> None:
    keepalive = greeted(KeepalivePolicy(idle_s_max=60))
    assert keepalive.tick(59, busy=True) is Action.NOTHING
    assert keepalive.tick(100, busy=False) is Action.NOTHING
    keepalive.responded = True
    assert keepalive.tick(130, busy=False) is Action.NOTHING
    assert keepalive.tick(189, busy=False) is Action.NOTHING
    assert keepalive.tick(190, busy=False) is Action.DRAIN


def test_an_old_connection_is_drained_and_closed_after_its_grace() -> None:
    keepalive = greeted(KeepalivePolicy(age_s_max=100, age_grace_s=10), age_factor=1.1)
    assert keepalive.tick(109, busy=True) is Action.NOTHING
    assert keepalive.tick(110.1, busy=True) is Action.DRAIN
    keepalive.draining(110.1)
    assert keepalive.tick(119, busy=True) is Action.NOTHING
    assert keepalive.tick(120.1, busy=True) is Action.CLOSE


@pytest.mark.parametrize(
    ("policy", "busy", "apart_s", "strikes_out"),
    [
        (KeepalivePolicy(), True, 300, False),
        (KeepalivePolicy(), True, 299, True),
        (KeepalivePolicy(), False, 300, True),
        (KeepalivePolicy(), False, 7_200, False),
        (KeepalivePolicy(client_pings_without_calls=True), False, 300, False),
        (KeepalivePolicy(client_ping_s_min=10), True, 10, False),
    ],
)
def test_pings_too_close_together_strike_the_client_out(
    policy: KeepalivePolicy, busy: bool, apart_s: float, strikes_out: bool
) -> None:
    keepalive = greeted(policy)
    outs = [keepalive.client_pinged(number * apart_s, busy=busy) for number in range(6)]
    assert outs == [False] * 3 + [strikes_out] * 3


def test_a_response_clears_the_strikes() -> None:
    keepalive = greeted(KeepalivePolicy())
    for number in range(100):
        keepalive.responded = number % 3 == 2
        assert not keepalive.client_pinged(float(number), busy=True)


def test_a_client_that_pings_too_much_is_told_to_calm_down(make_pipe: MakePipe) -> None:
    pipe = make_pipe({})
    pipe.run()
    for _ in range(4):
        pipe.client.engine.ping(b"12345678")
        pipe.run()
    pipe.core.flush()
    pipe.run()
    assert pipe.client.goaway.error_code == ErrorCode.ENHANCE_YOUR_CALM
    assert pipe.client.goaway.debug_data == b"too_many_pings"
    assert pipe.server.closed


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("Echo", b"x", Status.OK),
        ("Echo", b"", Status.OK),
        ("Nothing", b"x", Status.UNIMPLEMENTED),
    ],
)
def test_a_client_that_pings_beside_its_calls_is_welcome(
    make_pipe: MakePipe, echo_handler: Handler, method: str, body: bytes, status: Status
) -> None:
    """GRPC core measures bandwidth with a ping for about every message it receives.

    A message without any field, such as a list that is empty, is a response like every other.
    """
    pipe = make_pipe({"Echo": echo_handler})
    for _ in range(100):
        stream = pipe.client.request(body, path=f"/test.Test/{method}".encode())
        pipe.run()
        pipe.client.engine.ping(b"12345678")
        pipe.run()
        assert pipe.client.answers[stream].status is status
    assert not pipe.server.closed


def test_a_connection_whose_ping_is_not_answered_is_lost_with_its_calls(
    make_pipe: MakePipe,
) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append})
    pipe.client.request(b"x")
    pipe.run()
    pipe.server.tick(pipe.now_s + 7_200, 0)
    assert not pipe.server.closed
    pipe.server.tick(pipe.now_s + 7_220, 0)
    assert pipe.server.closed
    assert calls[0].answered


def test_an_idle_connection_ends_by_goaway(make_pipe: MakePipe) -> None:
    limits = ServerLimits(keepalive=KeepalivePolicy(idle_s_max=60))
    pipe = make_pipe({}, limits=limits)
    pipe.run()
    pipe.server.tick(pipe.now_s + 60, 0)
    pipe.core.flush()
    pipe.to_client()
    assert pipe.client.goaway.error_code == ErrorCode.NO_ERROR
    assert not pipe.server.closed  # the client may have sent a call meanwhile
    pipe.server.tick(pipe.now_s + 66, 0)
    pipe.core.flush()
    assert pipe.server.closed


def test_a_connection_that_keeps_shared_memory_without_reading_is_closed(
    make_pipe: MakePipe, make_client: Callable[..., Any]
) -> None:
    limits = ServerLimits(unsent_bytes_free=1_000, stalled_s_max=30)
    pipe = make_pipe(
        {"Echo": lambda call: call.reply(b"x" * 100_000)},
        limits=limits,
        client=make_client(acknowledge=False),
    )
    pipe.client.request(b"")
    pipe.run()
    for second, accepted in ((0, 10), (20, 20), (49, 20)):
        pipe.server.tick(pipe.now_s + second, accepted)
        assert not pipe.server.closed
    pipe.server.tick(pipe.now_s + 50, 20)
    assert pipe.server.closed
    assert pipe.core.unsent_free == limits.unsent_bytes_shared
