from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.deadlines import Deadlines


class Call:
    def __init__(self, deadlines: Deadlines, name: int = 0) -> None:
        self._deadlines = deadlines
        self.name = name
        self.answered = False
        self.expired = False

    def expire(self) -> None:
        self.expired = True
        self.answer()

    def answer(self) -> None:
        self.answered = True
        self._deadlines.answered()


def test_calls_expire_at_their_deadline_and_not_before() -> None:
    deadlines = Deadlines()
    calls = [Call(deadlines) for _ in range(3)]
    for call, deadline_s in zip(calls, (3.0, 1.0, 2.0), strict=True):
        deadlines.add(deadline_s, call)
    deadlines.expire(0.999)
    assert not any(call.expired for call in calls)
    deadlines.expire(2.0)
    assert [call.expired for call in calls] == [False, True, True]
    assert deadlines.next_s == 3.0


def test_an_answered_call_does_not_expire() -> None:
    deadlines = Deadlines()
    call = Call(deadlines)
    deadlines.add(1.0, call)
    call.answer()
    deadlines.expire(2.0)
    assert not call.expired
    assert len(deadlines) == 0


def test_only_an_earlier_deadline_wakes_the_watcher() -> None:
    deadlines = Deadlines()
    heard: list[float] = []
    deadlines.on_earlier = heard.append
    for deadline_s in (5.0, 7.0, 3.0, 4.0):
        deadlines.add(deadline_s, Call(deadlines))
    assert heard == [5.0, 3.0]


def test_answered_calls_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for number in range(100_000):
        call = Call(deadlines)
        deadlines.add(1e6 + number, call)
        call.answer()
    assert len(deadlines) <= 1_025


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["add", "answer", "expire"]))))
def test_every_call_is_answered_or_expires_exactly_once(steps: list[tuple[int, str]]) -> None:
    deadlines = Deadlines()
    calls: list[tuple[float, Call]] = []
    now_s = 0.0
    for number, step in steps:
        if step == "add":
            call = Call(deadlines)
            calls.append((now_s + number, call))
            deadlines.add(now_s + number, call)
        elif step == "answer" and calls:
            call = calls[number % len(calls)][1]
            if not call.answered:
                call.answer()
        else:
            now_s += number / 4
            deadlines.expire(now_s)
        for deadline_s, call in calls:
            assert not call.expired or deadline_s <= now_s
            assert call.answered or step != "expire" or deadline_s > now_s
    deadlines.expire(float("inf"))
    assert all(call.answered for _, call in calls)
    assert len(deadlines) == 0
