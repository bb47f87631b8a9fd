"""The ring of the latest events: what it holds, and what it knows to lack."""

from __future__ import annotations

from dbos_actors.actors.watching.entries import Cursor, Entry
from dbos_actors.actors.watching.ring import EventRing

BIG = 600
"""Bytes of an entry, with its overhead 1,000."""


def entry(number: int) -> Entry:
    return Entry(Cursor(number, 0), "run.running", "a", "m", "r", b"x" * BIG)


def test_nothing_is_covered_before_the_log_was_read_to_its_end() -> None:
    ring = EventRing(10_000)
    assert ring.append(entry(5)) == 0
    assert not ring.covers(Cursor(5, 0))
    assert not ring.covers(Cursor(9, 0))
    ring.read_to_the_end(Cursor(4, 0))
    assert ring.covers(Cursor(4, 0))
    assert not ring.covers(Cursor(3, 9))
    assert ring.end == Cursor(5, 0)


def test_the_oldest_leave_when_there_are_too_many_bytes_and_the_floor_follows() -> None:
    ring = EventRing(10_000)
    ring.read_to_the_end(Cursor(0, 0))
    numbers = [ring.append(entry(number)) for number in range(1, 101)]
    assert numbers == list(range(100))
    assert (len(ring), ring.size_bytes) == (10, 10_000)
    assert ring.floor == Cursor(90, 0)
    assert [one.cursor.ms for one in ring.behind(Cursor(90, 0), 3)] == [91, 92, 93]
    assert [one.cursor.ms for one in ring.behind(Cursor(98, 5), 10)] == [99, 100]
    assert ring.get(89) is None
    newest = ring.get(99)
    assert newest is not None
    assert newest.cursor == Cursor(100, 0)


def test_an_event_larger_than_the_ring_leaves_at_once_and_is_known_to_lack() -> None:
    ring = EventRing(500)
    ring.read_to_the_end(Cursor(0, 0))
    ring.append(entry(7))
    assert (len(ring), ring.size_bytes) == (0, 0)
    assert not ring.covers(Cursor(6, 0))
    assert ring.covers(Cursor(7, 0))
    assert ring.end == Cursor(7, 0)


def test_numbers_go_on_rising_when_the_ring_is_cleared() -> None:
    ring = EventRing(10_000)
    ring.append(entry(1))
    ring.clear()
    assert ring.get(0) is None
    assert ring.end is None
    assert ring.append(entry(2)) == 1
