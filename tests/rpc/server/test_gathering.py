"""When connections are read at ticks: where that pays, and never where it costs calls or time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.server.gathering import CHECK_S, GLANCE_S, SPAN_S, Gathering, Phase, Totals

STEP_S = 0.001

READ_S = 30e-6
"""CPU time of a read, with its share of a commit and a write."""
CALL_S = 20e-6
"""CPU time of each call in it."""
TICKS_APART_S = 0.002


@dataclass
class Server:
    """A server under load, in steps of a millisecond of a clock that nobody waits for.

    ``arrivals`` tells the calls of the next step, given whether calls are gathered. Over
    ``connections``: that many reads in a tick, or one for each call if that is fewer.
    """

    arrivals: Callable[[bool], float]
    connections: int = 8
    call_s: float = CALL_S
    read_s: float = READ_S
    gathering: Gathering = field(default_factory=Gathering)
    now_s: float = 1000.0
    cpu_s: float = 0.0
    calls: float = 0.0
    reads: float = 0.0
    on_s: float = 0.0
    tries: int = 0
    longest_try_s: float = 0.0

    def run(self, seconds: float) -> None:
        """Have so much time go by."""
        gathering = self.gathering
        try_s = 0.0
        for _ in range(round(seconds / STEP_S)):
            is_on = gathering.is_on
            calls = self.arrivals(is_on)
            share = STEP_S / TICKS_APART_S if is_on else 1.0
            reads = min(calls, self.connections * share) if is_on else calls
            self.now_s += STEP_S
            self.calls += calls
            self.reads += reads
            self.cpu_s += calls * self.call_s + reads * self.read_s
            self.on_s += STEP_S * is_on
            before = gathering.phase
            if reads and self.now_s >= gathering.due_s:
                totals = Totals(self.now_s, self.cpu_s, int(self.calls), int(self.reads))
                gathering.look(totals)
                assert gathering.due_s > self.now_s
                self.tries += gathering.phase is Phase.TRYING and before is not Phase.TRYING
            try_s = try_s + STEP_S if gathering.phase is Phase.TRYING else 0.0
            self.longest_try_s = max(self.longest_try_s, try_s)


def open_loop(calls_per_s: float) -> Callable[[bool], float]:
    """As many calls as ever, whatever the server does."""
    return lambda _: calls_per_s * STEP_S


def closed_loop(direct_per_s: float, gathered_per_s: float) -> Callable[[bool], float]:
    """Fewer calls while answers take longer."""
    return lambda is_on: (gathered_per_s if is_on else direct_per_s) * STEP_S


@pytest.mark.parametrize("calls_per_s", [9_000, 15_000, 25_000])
def test_calls_that_come_whatever_the_server_does_are_gathered_while_it_is_busy(
    calls_per_s: float,
) -> None:
    server = Server(open_loop(calls_per_s))
    server.run(0.5)
    assert server.gathering.is_on
    server.on_s = 0.0
    server.run(20.0)
    assert server.on_s >= 0.95 * 20.0
    assert server.tries == 1


@pytest.mark.parametrize("calls_per_s", [1, 500, 3_000, 7_000])
def test_a_server_with_little_to_do_never_makes_anybody_wait(calls_per_s: float) -> None:
    server = Server(open_loop(calls_per_s))
    server.run(5.0)
    assert server.tries == 0


def test_a_fast_server_is_not_busy_at_a_rate_at_which_a_slow_one_is() -> None:
    server = Server(open_loop(15_000), call_s=CALL_S / 3, read_s=READ_S / 3)
    server.run(5.0)
    assert server.tries == 0


@pytest.mark.parametrize(
    ("direct_per_s", "gathered_per_s", "connections"),
    [(21_000, 8_000, 2), (35_000, 28_000, 64), (40_000, 35_000, 32)],
)
def test_a_closed_loop_loses_next_to_nothing(
    direct_per_s: float, gathered_per_s: float, connections: int
) -> None:
    # Mutation: no judgement of a trial by its rate, or no longer pause after each failure.
    server = Server(closed_loop(direct_per_s, gathered_per_s), connections)
    server.run(20.0)
    assert server.calls >= 0.985 * 20.0 * direct_per_s
    assert server.longest_try_s <= SPAN_S + 2 * STEP_S
    assert server.tries <= 6


def test_a_trial_that_costs_many_calls_ends_at_a_glance() -> None:
    server = Server(closed_loop(21_000, 8_000), connections=2)
    server.run(0.5)
    assert (server.tries, server.gathering.phase) == (1, Phase.DIRECT)
    assert server.longest_try_s <= GLANCE_S + 2 * STEP_S


def test_large_reads_are_left_alone() -> None:
    gathering = Gathering()
    for span in range(100):
        # 128 calls in flight on four connections: 16 calls a read.
        calls = 4_000 * span
        gathering.look(Totals(1000.0 + span * SPAN_S, 0.08 * span, calls, calls // 16))
    assert gathering.phase is Phase.DIRECT


def test_gathering_that_makes_calls_no_cheaper_is_given_up() -> None:
    # As many connections as calls in a tick: none is read with more than one call.
    server = Server(open_loop(15_000), connections=1_000)
    server.run(1.0)
    assert (server.tries, server.gathering.phase) == (1, Phase.DIRECT)


def test_gathering_ends_when_fewer_calls_come() -> None:
    rate = 15_000.0
    server = Server(lambda _: rate * STEP_S)
    server.run(1.0)
    assert server.gathering.is_on
    rate = 4_000.0
    server.run(0.5)
    assert not server.gathering.is_on
    server.run(10.0)
    assert server.tries == 1


def test_gathering_ends_at_the_first_read_after_a_long_silence() -> None:
    rate = 15_000.0
    server = Server(lambda _: rate * STEP_S)
    server.run(1.0)
    rate = 0.0
    server.run(60.0)
    assert server.gathering.is_on  # nobody has read, so nobody has waited
    rate = 1_000.0
    server.run(0.002)
    assert not server.gathering.is_on


def test_callers_that_have_begun_to_wait_for_their_answers_are_found_by_checking() -> None:
    # Mutation: never check.
    server = Server(closed_loop(15_000, 15_000))
    server.run(1.0)
    assert server.gathering.is_on
    server.arrivals = closed_loop(24_000, 12_000)
    server.run(3.0)
    assert not server.gathering.is_on


def test_checking_takes_a_small_share_of_the_time_and_keeps_what_pays() -> None:
    server = Server(open_loop(15_000))
    server.run(1.0)
    phases = set()
    direct_s = 0.0
    for _ in range(10_000):
        server.run(STEP_S)
        phases.add(server.gathering.phase)
        direct_s += STEP_S * (not server.gathering.is_on)
    assert phases == {Phase.GATHERING, Phase.CHECKING}
    assert direct_s <= 10.0 / 2.0 * (CHECK_S + 2 * STEP_S)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0005, 0.02, 0.05, 0.1, 3.0, 1000.0]),
            st.floats(0.0, 1.2),
            st.integers(0, 100_000),
            st.floats(1.0, 200.0),
        ),
        max_size=60,
    )
)
def test_whatever_is_seen_the_next_look_is_soon_and_a_trial_is_short(
    spans: list[tuple[float, float, int, float]],
) -> None:
    gathering = Gathering()
    at_s, cpu_s, calls, reads = 50.0, 0.0, 0, 0
    trying_since_s: float | None = None
    for seconds, busy, calls_per_s, calls_per_read in spans:
        at_s = max(at_s + seconds, gathering.due_s)
        cpu_s += busy * seconds
        calls += int(calls_per_s * seconds)
        reads += int(calls_per_s * seconds / calls_per_read)
        gathering.look(Totals(at_s, cpu_s, calls, reads))
        assert at_s < gathering.due_s <= at_s + SPAN_S
        assert gathering.is_on is (gathering.phase in {Phase.TRYING, Phase.GATHERING})
        if gathering.phase is not Phase.TRYING:
            trying_since_s = None
        elif trying_since_s is None:
            trying_since_s = at_s
        else:
            assert gathering.due_s <= trying_since_s + SPAN_S + 1e-9
