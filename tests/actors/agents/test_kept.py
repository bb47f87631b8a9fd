"""The upper bounds of what an agent keeps, while several questions to Redis are under way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dbos_actors.actors.agents.kept import _KNOWN_MAX, Kept, KeptLimits
from dbos_actors.errors import QuotaError
from dbos_actors.store.keys import Keys


class Agent:
    """An agent's bounds, and a Redis that holds its results and modules."""

    def __init__(self, **limits: int) -> None:
        self.again: list[Any] = []
        self.stored: set[str] = set()
        cell: Any = SimpleNamespace(deliver=self.again.append, key="a")
        store: Any = SimpleNamespace(keys=Keys("0"))
        self.kept = Kept(cell, store, "a", KeptLimits(**limits))
        self.kept.loaded(is_known=True, states=0, unfinished=0)

    def ask(self, result_id: str) -> Any:
        """Let a result through and store it, or return what answers the question."""
        turn: Any = self.kept.before_result(result_id)
        if turn is None:
            self.stored.add(result_id)
            return None
        turn.call = SimpleNamespace(request=SimpleNamespace(result=SimpleNamespace(id=result_id)))
        replies = [result_id in self.stored, len(self.stored)]
        return lambda: turn.then(turn, replies)


def test_answers_to_questions_of_one_moment_make_room_once() -> None:
    agent = Agent(results=5)
    answers = [agent.ask(f"r{number}") for number in range(20)]
    for answer in answers:
        answer()
        for call in agent.again:
            agent.ask(call.request.result.id)
        agent.again.clear()
    assert len(agent.stored) == 5
    with pytest.raises(QuotaError, match="5 results"):
        agent.ask("another")()


def test_a_copy_has_its_turn_and_leaves_its_place_to_no_other() -> None:
    agent = Agent(results=2)
    agent.stored = {"r0", "r1"}
    agent.ask("r0")()
    assert agent.ask("new") is not None
    assert len(agent.again) == 1
    assert agent.ask("r0") is None
    assert agent.ask("r0") is not None


def test_a_known_module_leaves_its_place_to_no_other() -> None:
    agent = Agent(modules=1)
    turn: Any = agent.kept.before_state("ping", unfinished=False)
    turn.call = None
    turn.then(turn, [3, 1, 1, 0])
    assert agent.kept.before_state("other", unfinished=False) is not None
    assert agent.kept.before_state("ping", unfinished=False) is None


def test_what_is_remembered_for_callers_that_gave_up_is_bounded() -> None:
    agent = Agent(results=1)
    for number in range(3 * _KNOWN_MAX):
        agent.stored.add(f"r{number}")
        agent.ask(f"r{number}")()
        assert len(agent.kept._known_results) <= _KNOWN_MAX
