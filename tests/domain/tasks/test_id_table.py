"""Ids in blocks, against a dict and a set."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dbos_actors.domain.tasks import id_table
from dbos_actors.domain.tasks.id_table import BLOCK_MAX, IdList, IdTable

IDS = st.integers(0, 60).map(lambda number: f"{number:02}")


class TablesAgainstDict(RuleBasedStateMachine):
    """With blocks of a few ids, so that they split and join at every other step."""

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(id_table, "BLOCK_MAX", 4)
        self._patch.setattr(id_table, "_BLOCK_MIN", 1)
        self.table: IdTable[int] = IdTable()
        self.list = IdList()
        self.model: dict[str, int] = {}

    def teardown(self) -> None:
        self._patch.undo()

    @rule(key=IDS, value=st.integers(0, 3))
    def put(self, key: str, value: int) -> None:
        assert self.table.put(key, value) == self.model.get(key)
        if key not in self.model:
            self.list.add(key)
        self.model[key] = value

    @rule(key=IDS)
    def pop(self, key: str) -> None:
        if key in self.model:
            self.list.remove(key)
        assert self.table.pop(key) == self.model.pop(key, None)

    @rule(key=st.one_of(st.just(""), IDS), limit=st.integers(1, 5))
    def look(self, key: str, limit: int) -> None:
        assert self.table.get(key) == self.model.get(key)
        assert (key in self.table) is (key in self.list) is (key in self.model)
        behind = sorted(one for one in self.model if one > key)
        found = self.table.following(key, limit)
        assert found == [(one, self.model[one]) for one in behind[: len(found)]]
        assert len(found) <= limit
        assert bool(found) is bool(behind)
        ids = self.list.following(key, limit)
        assert ids == behind[: len(ids)]
        assert len(ids) <= limit
        assert bool(ids) is bool(behind)

    @invariant()
    def same(self) -> None:
        assert len(self.table) == len(self.list) == len(self.model)
        assert bool(self.list) is bool(self.model)
        assert list(self.table) == list(dict.fromkeys(self.table))
        assert set(self.table) == set(self.model)
        assert self.table._firsts == sorted(set(self.table._firsts))
        assert all(len(block) <= 4 for block in self.table._blocks)
        assert all(0 < len(block) <= 4 for block in self.list._blocks)


TestTablesAgainstDict = TablesAgainstDict.TestCase


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_blocks_stay_few_and_small_however_ids_come_and_go(order: str) -> None:
    count = 40_000
    ids = [f"{i:06}" for i in range(count)]
    if order == "descending":
        ids.reverse()
    elif order == "random":
        Random(1).shuffle(ids)
    table: IdTable[None] = IdTable()
    found = IdList()
    for one in ids:
        table.put(one, None)
        found.add(one)
    assert len(table) == len(found) == count
    assert max(map(len, table._blocks)) <= BLOCK_MAX
    assert table.blocks <= 2 * count / BLOCK_MAX + 2
    assert len(found._blocks) <= 2 * count / BLOCK_MAX + 2
    Random(2).shuffle(ids)
    for one in ids[:-100]:
        table.pop(one)
        found.remove(one)
    assert sorted(table) == sorted(ids[-100:])
    assert table.blocks <= 10
    assert len(found._blocks) <= 10
    for one in ids[-100:]:
        table.pop(one)
        found.remove(one)
    assert (len(table), len(found), table.following("")) == (0, 0, [])
