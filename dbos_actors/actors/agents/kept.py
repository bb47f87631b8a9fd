"""How many results, runs and modules one agent may have stored.

An actor does not know how many there are: most are in Redis alone, and retention deletes some
without asking it. So it keeps an upper bound of each number. What may add one raises the bound, and
nothing lowers it, until it reaches the limit. Then Redis is asked for the number itself, in the
same round trips as the writes of others, and nothing is scanned. The number that Redis tells holds
for the moment of the question; what was let through since is added to it, because other questions
may be under way, and each answer makes room only once. If there is room after all, the message has
its turn again. So while an agent is far from its limits, it is hardly ever counted.

What changes nothing is never refused: a result whose id is stored, or a module with that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from dbos_actors.errors import QuotaError, UnavailableError
from dbos_actors.runtime import DEFERRED, ActorCell, Turn
from dbos_actors.store import Store, pack


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLimits:
    """Of one agent; 0 is no limit."""

    results: int = 0
    states: int = 0
    """Runs, and modules' own states."""
    unfinished: int = 0
    """Of the runs."""
    modules: int = 0
    """Names of modules that have a state."""


class Kept:
    """The upper bounds of one agent, for its actor."""

    __slots__ = (
        "_cell",
        "_known_modules",
        "_known_results",
        "_limits",
        "_modules",
        "_name",
        "_results",
        "_results_let_through",
        "_states",
        "_states_let_through",
        "_store",
        "_unfinished",
    )

    def __init__(self, cell: ActorCell, store: Store, name: str, limits: KeptLimits) -> None:
        """``name`` is the agent's id as it stands in keys."""
        self._cell = cell
        self._store = store
        self._name = name
        self._limits = limits
        self._results = self._modules = self._states = self._unfinished = 0
        # Ever, so that an answer of Redis can tell how many since its question.
        self._results_let_through = self._states_let_through = 0
        # Told by Redis to be stored already: messages about them that wait for their turn.
        self._known_results: dict[str, int] = {}
        self._known_modules: dict[str, int] = {}

    def loaded(self, *, is_known: bool, states: int, unfinished: int) -> None:
        """The actor has loaded: so many states and unfinished runs are stored.

        How many results and modules is not known, so it is as if their limits were reached, unless
        nothing of the agent is stored at all.
        """
        self._states, self._unfinished = states, unfinished
        self._results = self._limits.results if is_known else 0
        self._modules = self._limits.modules if is_known else 0

    # --------------------------------------------------------------- results

    def before_result(self, result_id: str) -> Turn | None:
        """What to do instead of storing a result that may be new; None: there is room for it."""
        limit = self._limits.results
        if self._known_results and _taken(self._known_results, result_id):
            return None
        if self._results < limit or not limit:
            self._results += 1
            self._results_let_through += 1
            return None
        results = self._store.keys.results + self._name
        commands = [pack("HEXISTS", results, result_id), pack("HLEN", results)]
        then = partial(self._results_counted, self._results_let_through)
        return Turn(None, commands=commands, then=then)

    def _results_counted(self, before: int, turn: Turn, replies: Sequence[Any] | None) -> Any:
        """``before``: how many results had been let through when Redis was asked."""
        exists, count = _known(replies)
        limit = self._limits.results
        if count >= limit and not exists:
            raise self._full(f"{limit} results")
        self._results = count + self._results_let_through - before
        if exists:
            _add(self._known_results, turn.call.request.result.id)
        return self._again(turn)

    # ---------------------------------------------------------------- states

    def before_state(self, module: str, *, unfinished: bool) -> Turn | None:
        """What to do instead of storing a new run or module state; None: there is room for it."""
        limits = self._limits
        has_module = bool(self._known_modules) and _taken(self._known_modules, module)
        if (
            (limits.states and self._states >= limits.states)
            or (limits.modules and self._modules >= limits.modules and not has_module)
            or (unfinished and limits.unfinished and self._unfinished >= limits.unfinished)
        ):
            keys, name = self._store.keys, self._name
            commands = [
                pack("HLEN", keys.states + name),
                pack("SCARD", keys.modules + name),
                pack("SISMEMBER", keys.modules + name, module),
                pack("SCARD", keys.unfinished + name),
            ]
            then = partial(self._states_counted, self._states_let_through, module, unfinished)
            return Turn(None, commands=commands, then=then)
        self._states_let_through += 1
        self._states += 1
        self._modules += not has_module
        self._unfinished += unfinished
        return None

    def _states_counted(
        self,
        before: int,
        module: str,
        unfinished: bool,
        turn: Turn,
        replies: Sequence[Any] | None,
    ) -> Any:
        """``before``: how many states had been let through when Redis was asked."""
        limits = self._limits
        states, modules, has_module, runs = _known(replies)
        if unfinished and limits.unfinished and runs >= limits.unfinished:
            raise self._full(f"{limits.unfinished} unfinished runs")
        if limits.states and states >= limits.states:
            raise self._full(f"{limits.states} runs and states of modules")
        if limits.modules and modules >= limits.modules and not has_module:
            raise self._full(f"{limits.modules} names of modules")
        since = self._states_let_through - before
        self._states = states + since
        self._modules = modules + since
        self._unfinished = runs + since
        if has_module:
            _add(self._known_modules, module)
        return self._again(turn)

    def _again(self, turn: Turn) -> Any:
        """There is room: let the message have its turn after all."""
        self._cell.deliver(turn.call)
        return DEFERRED

    def _full(self, quota: str) -> QuotaError:
        return QuotaError(f"the agent {self._cell.key!r}", quota=quota)


_KNOWN_MAX: Final = 1_024
"""Names that are remembered. A message whose caller gave up leaves its name behind; when there are
so many, all are forgotten, and those that still wait are counted again."""


def _add(known: dict[str, int], name: str) -> None:
    """One more message about ``name`` waits."""
    if len(known) >= _KNOWN_MAX:
        known.clear()
    known[name] = known.get(name, 0) + 1


def _taken(known: dict[str, int], name: str) -> bool:
    """Take one message about ``name`` out of those that wait; whether there was one."""
    waiting = known.pop(name, 0)
    if waiting > 1:
        known[name] = waiting - 1
    return waiting > 0


_LOST: Final = "the connection to Redis was lost while the agent's records were counted"


def _known(replies: Sequence[Any] | None) -> Sequence[Any]:
    if replies is None:
        raise UnavailableError(_LOST)
    return replies
