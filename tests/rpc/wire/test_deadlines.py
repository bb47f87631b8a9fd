from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.wire.deadlines import Deadlines

LATE_S = 1 / 256


class Call:
    def __init__(self, deadlines: Deadlines, deadline_s: float) -> None:
        self._deadlines = deadlines
        self.deadline_s = deadline_s
        self.ends = 0
        self.expired = False
        deadlines.add(deadline_s, self)

    def expire(self) -> None:
        self.expired = True
        self.answer()

    def answer(self) -> None:
        self.ends += 1
        self._deadlines.remove(self.deadline_s, self)


def test_calls_expire_at_their_deadline_and_not_before() -> None:
    deadlines = Deadlines()
    calls = [Call(deadlines, deadline_s) for deadline_s in (3.0, 1.0, 2.0)]
    assert deadlines.next_s == 1.0
    deadlines.expire(0.999)
    assert not any(call.expired for call in calls)
    deadlines.expire(2.0)
    assert [call.expired for call in calls] == [False, True, True]
    assert deadlines.next_s == 3.0


def test_calls_with_the_same_deadline_expire_a_hundred_at_once() -> None:
    deadlines = Deadlines()
    calls = [Call(deadlines, 1.0) for _ in range(250)]
    expired = []
    while deadlines.next_s <= 2.0:
        deadlines.expire(2.0)
        expired.append(sum(call.expired for call in calls))
    assert expired[:3] == [100, 200, 250]
    assert [call.ends for call in calls] == [1] * 250
    assert len(deadlines) == 0


def test_an_answered_call_does_not_expire() -> None:
    deadlines = Deadlines()
    call = Call(deadlines, 1.0)
    call.answer()
    deadlines.expire(2.0)
    assert not call.expired
    assert (len(deadlines), deadlines.next_s) == (0, float("inf"))


def test_only_an_earlier_deadline_wakes_the_watcher() -> None:
    deadlines = Deadlines()
    heard: list[float] = []
    deadlines.on_earlier = heard.append
    for deadline_s in (5.0, 7.0, 3.0, 4.0, 3.0):
        Call(deadlines, deadline_s)
    assert heard == [5.0, 3.0]


def test_answered_calls_and_their_buckets_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for number in range(50_000):
        Call(deadlines, 1e6 + number / 10).answer()
    assert len(deadlines) == 0
    assert len(deadlines._heap) < 2_000


@given(
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from(["add", "answer", "expire"])), max_size=60)
)
def test_every_call_ends_exactly_once_and_none_early(steps: list[tuple[float, str]]) -> None:
    deadlines = Deadlines()
    calls: list[Call] = []
    now_s = 0.0
    for number, step in steps:
        if step == "add":
            calls.append(Call(deadlines, now_s + number))
        elif step == "answer" and calls:
            call = calls[int(number) % len(calls)]
            if not call.ends:
                call.answer()
        else:
            now_s += number / 4
            assert deadlines.next_s <= min(
                [call.deadline_s + LATE_S for call in calls if not call.ends], default=float("inf")
            )
            deadlines.expire(now_s)
            for call in calls:
                assert not call.expired or call.deadline_s <= now_s
                assert call.ends or call.deadline_s > now_s - LATE_S
    deadlines.expire(float("inf"))
    assert all(call.ends == 1 for call in calls)
    assert len(deadlines) == 0
