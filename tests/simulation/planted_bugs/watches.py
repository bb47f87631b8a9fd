"""Planted bugs in the watches: what they are told, and what they look through."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from dbos_actors.actors.watching.filters import Groups
from dbos_actors.actors.watching.ring import EventRing
from dbos_actors.actors.watching.watchers import Watcher, Watchers
from dbos_actors.store.committer import Committer
from tests.simulation.planted_bugs.registry import planted


@planted
def a_watch_is_told_of_events_before_they_are_committed() -> Any:
    submit = Committer.submit

    def submit_and_tell(self: Committer, submission: Any) -> None:
        submit(self, submission)
        follower = self._listeners.follower
        if follower is not None:
            follower([(submission, 0.0)], None, True)

    return patch.object(Committer, "submit", submit_and_tell)


@planted
def a_watch_that_falls_behind_goes_on_from_now() -> Any:
    def skip(self: Watcher) -> None:
        self._noted.clear()
        self.cursor = max(self.cursor, self._watchers.ring.end or self.cursor)

    return patch.object(Watcher, "fall_behind", skip)


@planted
def a_watch_does_not_read_what_the_ring_lacks() -> Any:
    return patch.object(EventRing, "covers", lambda *_: True)


@planted
def events_of_commits_whose_replies_were_lost_are_not_told() -> Any:
    tell = Committer._apply

    def apply(self: Committer, effects: Any) -> None:
        listeners = self._listeners
        follower = listeners.follower
        if effects.replies is None:
            listeners.follower = None
        tell(self, effects)
        listeners.follower = follower

    return patch.object(Committer, "_apply", apply)


@planted
def a_watch_that_leaves_takes_its_whole_group_with_it() -> Any:
    def remove(self: Groups[Any], wanted: Any, watch: Any) -> None:
        for names in wanted.groups():
            self._groups.pop(names, None)

    return patch.object(Groups, "remove", remove)


@planted
def a_watch_gets_again_what_it_read_from_the_log() -> Any:
    """What was noted meanwhile is not held against the cursor."""
    original = Watchers._publish

    def publish(self: Watchers, entry_id: bytes, event: bytes) -> None:
        for watcher in self._watchers:
            watcher._is_live = True
        original(self, entry_id, event)

    return patch.object(Watchers, "_publish", publish)
