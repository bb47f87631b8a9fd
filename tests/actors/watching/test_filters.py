"""Who wants an event: found by lookups, and never by asking those who do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.actors.watching.entries import Cursor, Entry
from dbos_actors.actors.watching.filters import Filter, Groups

NAMES = st.sampled_from(["", "a", "b"])
TYPES = st.frozensets(st.sampled_from(["run.running", "task.dead", "agent.alive"]), max_size=3)
FILTERS = st.builds(Filter, NAMES, NAMES, NAMES, TYPES)
ENTRIES = st.builds(
    Entry,
    st.just(Cursor(1, 1)),
    st.sampled_from(["run.running", "task.dead", "agent.alive"]),
    NAMES,
    NAMES,
    NAMES,
    st.just(b""),
)


@given(st.lists(FILTERS, max_size=20), st.lists(ENTRIES, max_size=10), st.data())
def test_exactly_those_that_want_an_event_are_found_each_once(
    wanted: list[Filter], entries: list[Entry], data: st.DataObject
) -> None:
    groups: Groups[int] = Groups()
    for number, one in enumerate(wanted):
        groups.add(one, number)
    staying = dict(enumerate(wanted))
    leaving = st.sets(st.integers(0, len(wanted) - 1)) if wanted else st.just(set())
    for number in data.draw(leaving):
        groups.remove(wanted[number], number)
        del staying[number]
    for entry in entries:
        found = list(groups.who_want(entry))
        assert len(found) == len(set(found))
        assert set(found) == {n for n, one in staying.items() if one.wants(entry)}


def test_nine_thousand_watches_that_want_other_events_cost_no_lookup_more() -> None:
    def lookups(others: int) -> int:
        groups: Groups[int] = Groups()
        groups.add(Filter(agent_id="busy"), 0)
        groups.add(Filter(types=frozenset({"run.running"})), 1)
        for number in range(2, others):
            match number % 3:
                case 0:
                    wanted = Filter(agent_id=f"idle-{number}")
                case 1:
                    wanted = Filter(types=frozenset({"agent.lapsed"}))
                case _:
                    wanted = Filter(agent_id="another")
            groups.add(wanted, number)
        entry = Entry(Cursor(1, 1), "run.running", "busy", "ping", "r", b"")
        assert sorted(groups.who_want(entry)) == [0, 1]
        return groups.looked_up

    assert lookups(9_002) == lookups(5) == 2


def test_an_event_without_an_agent_is_not_one_of_an_agent_without_a_name() -> None:
    groups: Groups[str] = Groups()
    groups.add(Filter(agent_id="a"), "of an agent")
    groups.add(Filter(), "of all")
    entry = Entry(Cursor(1, 1), "task.dead", "", "", "", b"")
    assert list(groups.who_want(entry)) == ["of all"]
