"""The timer heap against a sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dbos_actors.domain.tasks.timers import PERIOD_TICKS, TimerHeap

TICKS = st.one_of(
    st.integers(0, 8),
    st.integers(PERIOD_TICKS - 3, PERIOD_TICKS + 3),
    st.integers(0, 5 * PERIOD_TICKS),
)
IDS = st.sampled_from("abcdefgh")


class HeapAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.heap = TimerHeap()
        self.model: set[tuple[int, str]] = set()

    def ordered(self) -> list[tuple[int, str]]:
        return sorted(self.model)

    @rule(tick=TICKS, timer_id=IDS)
    def add(self, tick: int, timer_id: str) -> None:
        self.heap.add(tick, timer_id)
        self.model.add((tick, timer_id))

    @rule(tick=TICKS, timer_id=IDS)
    def discard(self, tick: int, timer_id: str) -> None:
        present = (tick, timer_id) in self.model
        assert self.heap.discard(tick, timer_id) is present
        self.model.discard((tick, timer_id))

    @rule(data=st.data())
    def discard_present(self, data: st.DataObject) -> None:
        if self.model:
            self.discard(*data.draw(st.sampled_from(self.ordered())))

    @rule(until=TICKS, limit=st.integers(0, 5))
    def pop(self, until: int, limit: int) -> None:
        expected = [timer for timer in self.ordered() if timer[0] <= until][:limit]
        assert self.heap.pop(until, limit) == expected
        for timer in expected:
            self.model.remove(timer)

    @rule(tick=TICKS, timer_id=st.one_of(st.just(""), IDS), limit=st.integers(1, 5))
    def look(self, tick: int, timer_id: str, limit: int) -> None:
        ordered = self.ordered()
        assert list(self.heap.ascending(tick)) == [t for t in ordered if t[0] <= tick]
        behind = [timer for timer in ordered if timer > (tick, timer_id)]
        assert self.heap.following(tick, timer_id, limit) == behind[:limit]

    @rule(tick=TICKS, timer_id=IDS)
    def contains(self, tick: int, timer_id: str) -> None:
        assert ((tick, timer_id) in self.heap) is ((tick, timer_id) in self.model)

    @invariant()
    def same(self) -> None:
        assert len(self.heap) == len(self.model)
        assert list(self.heap.ascending()) == self.ordered()
        assert sorted(self.heap.ids()) == sorted(timer_id for _, timer_id in self.model)
        assert self.heap.first_tick() == min((t for t, _ in self.model), default=None)


TestHeapAgainstList = HeapAgainstList.TestCase


@given(st.lists(TICKS, max_size=50))
def test_everything_added_comes_out_in_order_of_time_then_id(ticks: list[int]) -> None:
    heap = TimerHeap()
    for position, tick in enumerate(ticks):
        heap.add(tick, str(position))
    assert heap.pop(10**9, 1000) == sorted(
        (tick, str(position)) for position, tick in enumerate(ticks)
    )
    assert heap.first_tick() is None


def test_timers_that_come_and_go_at_changing_ticks_leave_nothing_behind() -> None:
    heap = TimerHeap()
    heap.add(1, "keeps the first period open")
    for i in range(50_000):
        tick = i % PERIOD_TICKS
        heap.first_tick()
        heap.add(tick, "x")
        heap.discard(tick, "x")
        heap.add(i * PERIOD_TICKS, "y")
        heap.discard(i * PERIOD_TICKS, "y")
    assert len(heap) == 1
    assert len(heap._open_ticks) <= 2 * PERIOD_TICKS
    assert len(heap._numbers) == 1
    assert len(heap._periods) == 1


def test_a_tick_with_more_ids_than_a_block_holds_is_read_and_taken_in_order() -> None:
    heap = TimerHeap()
    ids = [f"{i:05}" for i in range(5_000)]
    for timer_id in sorted(ids, key=lambda one: one[::-1]):
        heap.add(7, timer_id)
    heap.add(8, "later")
    assert list(heap.ascending(7)) == [(7, timer_id) for timer_id in ids]
    assert heap.following(7, ids[2_500], 2) == [(7, ids[2_501]), (7, ids[2_502])]
    assert heap.following(7, ids[-1], 5) == [(8, "later")]
    assert heap.discard(7, ids[0])
    assert not heap.discard(7, ids[0])
    assert (7, ids[1]) in heap
    eaten = [timer for _ in range(50) for timer in heap.pop(7, 100)]
    assert eaten == [(7, timer_id) for timer_id in ids[1:]]
    assert heap.first_tick() == 8
    assert len(heap) == 1
