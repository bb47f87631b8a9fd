"""Whether one register's operations can have happened one after another.

The search is Wing and Gong's with Lowe's memory of visited configurations: take
any operation that nothing unfinished must precede, apply it to the model, and
go on; give a configuration (what is done, state) up if it was met before.

Two things keep the search short. An operation that by its answer changed nothing
is taken as soon as it fits, without trying anything else. One without an answer
is not taken where it would change nothing.

An operation without an answer may be taken at any time or left out; but not
after its ``last``, or ``settled_at``, when what had not happened could not happen any more.

What Redis may lose when it and its server die together is described by
`Rollback`: at that moment the register may return to any state it had had since
the last moment that is certain to be on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tests.simulation.history import KeyOperation
from tests.simulation.models import Impossible, Model, State, only_looks

CONFIGURATIONS_MAX = 200_000
"""Visited before the search gives up undecided; a hundred times what usual histories need."""


UNANSWERED_TAKEN = (1, 3, 6, 1_000)
"""Most histories can be explained with few of the operations that have no answer."""


class Verdict(Enum):
    """What the search has found."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Rollback:
    """At ``at``, what was acknowledged after ``certain`` may be gone."""

    certain: int
    at: int


@dataclass(slots=True)
class _Configuration:
    done: int
    state: State
    # States the register had since the last certain moment, newest last; None: no rollback ahead.
    past: tuple[State, ...]
    rollbacks: int


def check(
    operations: Sequence[KeyOperation],
    model: Model,
    *,
    settled_at: int | None = None,
    rollbacks: Sequence[Rollback] = (),
) -> Verdict:
    """Search for an order that explains every answer."""
    search = _Search(operations, model, settled_at, rollbacks)
    for budget in UNANSWERED_TAKEN:
        verdict = search.run(budget)
        if verdict is Verdict.LINEARIZABLE or not search.was_cut:
            break
    return verdict


class _Search:
    """One register's search, at rising budgets of unanswered operations taken."""

    def __init__(
        self,
        operations: Sequence[KeyOperation],
        model: Model,
        settled_at: int | None,
        rollbacks: Sequence[Rollback],
    ) -> None:
        self._ordered = sorted(operations, key=lambda operation: operation.start)
        self._model = model
        self._rollbacks = rollbacks
        self._answered = sum(1 << i for i, o in enumerate(self._ordered) if o.end is not None)
        # By operation: those after which it cannot happen any more.
        self._late = [
            0 if o.end is not None else self._later(settled_at if o.last is None else o.last)
            for o in self._ordered
        ]
        self.was_cut = False
        """Whether the last run left something untried for its budget."""

    def _later(self, moment: int | None) -> int:
        """The operations that began after a moment, as a mask."""
        if moment is None:
            return 0
        return sum(1 << i for i, o in enumerate(self._ordered) if o.start > moment)

    def run(self, budget: int) -> Verdict:
        """Search, taking at most so many operations that have no answer."""
        self.was_cut = False
        stack = [_Configuration(0, None, (None,), 0)]
        met: set[tuple[int, State, tuple[State, ...], int]] = set()
        while stack:
            at = stack.pop()
            if at.done & self._answered == self._answered:
                return Verdict.LINEARIZABLE
            if (at.done & ~self._answered).bit_count() > budget:
                self.was_cut = True
                continue
            key = (at.done, at.state, at.past, at.rollbacks)
            if key in met:
                continue
            met.add(key)
            if len(met) > CONFIGURATIONS_MAX:
                return Verdict.UNDECIDED
            stack += _next(at, self._ordered, self._model, self._late, self._rollbacks)
        return Verdict.VIOLATION


def _next(
    at: _Configuration,
    ordered: Sequence[KeyOperation],
    model: Model,
    late: Sequence[int],
    rollbacks: Sequence[Rollback],
) -> list[_Configuration]:
    # Everything taken next must have started before any answered, untaken operation ended.
    limit = min(
        (o.end for i, o in enumerate(ordered) if o.end is not None and not at.done >> i & 1),
    )
    found: list[_Configuration] = []
    rollback = rollbacks[at.rollbacks] if at.rollbacks < len(rollbacks) else None
    if rollback is not None:
        if rollback.at < limit:
            following = rollbacks[at.rollbacks + 1 : at.rollbacks + 2]
            # What the next one may bring back may be older than this one.
            kept = at.past if following and following[0].certain < rollback.at else ()
            found = [
                _Configuration(at.done, state, (*kept, state), at.rollbacks + 1)
                for state in dict.fromkeys(at.past)
            ]
        limit = min(limit, rollback.at)
    for i, operation in enumerate(ordered):
        if operation.start > limit:
            break
        if at.done >> i & 1:
            continue
        if at.done & late[i]:
            continue
        try:
            state = model(at.state, operation.kind, operation.argument, operation.result)
        except Impossible:
            continue
        done = at.done | 1 << i
        if operation.end is None and state == at.state:
            continue  # as good as left out, for now
        if state == at.state and only_looks(operation.kind, operation.result):
            # It fits here and never changes anything: whatever else comes can come after it.
            # (Where a state is a set of what may be, a look may rule some of it out.)
            return [_Configuration(done, state, at.past, at.rollbacks)]
        past: tuple[State, ...] = ()
        if rollback is not None:
            past = _past(at, state, ordered, rollback)
        found.append(_Configuration(done, state, past, at.rollbacks))
    return found


def _past(
    at: _Configuration, state: State, ordered: Sequence[KeyOperation], rollback: Rollback
) -> tuple[State, ...]:
    """States that may come back: none before all that is certain was done."""
    for i, operation in enumerate(ordered):
        certain = operation.end is not None and operation.end <= rollback.certain
        if certain and not at.done >> i & 1:
            return (state,)
    return at.past if at.past and at.past[-1] == state else (*at.past, state)
