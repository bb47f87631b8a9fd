"""How many results, runs and modules one agent may have stored.

An actor does not know how many there are: most are in Redis alone, and retention deletes some
without asking it. So it keeps an upper bound of each number. What may add one raises the bound, and
nothing lowers it, until it reaches the limit. Then Redis is asked for the number itself, in the
same round trips as the writes of others, and nothing is scanned. If there is room after all, the
message has its turn again. So while an agent is far from its limits, it is hardly ever counted.

What changes nothing is never refused: a result whose id is stored, or a module with that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        "_limits",
        "_modules",
        "_name",
        "_results",
        "_states",
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
        if self._results < limit or not limit:
            self._results += 1
            return None
        results = self._store.keys.results + self._name
        commands = [pack("HEXISTS", results, result_id), pack("HLEN", results)]
        return Turn(None, commands=commands, then=self._results_counted)

    def _results_counted(self, turn: Turn, replies: Sequence[Any] | None) -> Any:
        exists, count = _known(replies)
        limit = self._limits.results
        if count >= limit and not exists:
            raise self._full(f"{limit} results")
        self._results = min(count, limit - 1)
        return self._again(turn)

    # ---------------------------------------------------------------- states

    def before_state(self, module: str, *, unfinished: bool) -> Turn | None:
        """What to do instead of storing a new run or module state; None: there is room for it."""
        limits = self._limits
        if (
            (limits.states and self._states >= limits.states)
            or (limits.modules and self._modules >= limits.modules)
            or (unfinished and limits.unfinished and self._unfinished >= limits.unfinished)
        ):
            keys, name = self._store.keys, self._name
            commands = [
                pack("HLEN", keys.states + name),
                pack("SCARD", keys.modules + name),
                pack("SISMEMBER", keys.modules + name, module),
                pack("SCARD", keys.unfinished + name),
            ]
            then = self._unfinished_counted if unfinished else self._states_counted
            return Turn(None, commands=commands, then=then)
        self._states += 1
        self._modules += 1
        self._unfinished += unfinished
        return None

    def _unfinished_counted(self, turn: Turn, replies: Sequence[Any] | None) -> Any:
        limit = self._limits.unfinished
        count = _known(replies)[3]
        if limit and count >= limit:
            raise self._full(f"{limit} unfinished runs")
        self._unfinished = count
        return self._states_counted(turn, replies)

    def _states_counted(self, turn: Turn, replies: Sequence[Any] | None) -> Any:
        limits = self._limits
        states, modules, has_module, _ = _known(replies)
        if limits.states and states >= limits.states:
            raise self._full(f"{limits.states} runs and states of modules")
        if limits.modules and modules >= limits.modules and not has_module:
            raise self._full(f"{limits.modules} names of modules")
        self._states = states
        self._modules = min(modules, limits.modules - 1)
        return self._again(turn)

    def _again(self, turn: Turn) -> Any:
        """There is room: let the message have its turn after all."""
        self._cell.deliver(turn.call)
        return DEFERRED

    def _full(self, quota: str) -> QuotaError:
        return QuotaError(f"the agent {self._cell.key!r}", quota=quota)


_LOST: Final = "the connection to Redis was lost while the agent's records were counted"


def _known(replies: Sequence[Any] | None) -> Sequence[Any]:
    if replies is None:
        raise UnavailableError(_LOST)
    return replies
