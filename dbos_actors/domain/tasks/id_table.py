"""Ids in order, in small pieces: a table of values by id, and a plain list of ids.

Both hold their ids in *blocks* of at most `BLOCK_MAX`, each block a range of ids. A binary
search finds the block, so that no operation moves more than one block, whatever the total, and
a reader goes on behind any id, whatever was added or removed in the meantime.

They differ in what they cost. `IdTable` keeps a block as a dict, which the garbage collector
does not visit if the values are bytes or None, and sorts it only when it is read in order; it is
as fast as a dict, less the search. `IdList` keeps a block as a sorted list: 9 bytes an id instead
of 35, for ids that come and go rarely.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from operator import itemgetter
from typing import Generic, TypeVar

V = TypeVar("V")

BLOCK_MAX = 1024
"""Ids of a block: sorting so many takes 0.1 to 0.2 ms, splitting them as long."""

_BLOCK_MIN = BLOCK_MAX // 4
"""A smaller block joins a neighbour, if both together leave room for as many again."""


class IdTable(Generic[V]):
    """A table of values by id."""

    __slots__ = ("_blocks", "_firsts", "_size")

    def __init__(self) -> None:
        self._blocks: list[dict[str, V]] = [{}]
        # No id of a block is below its entry here, nor is any before it at or above.
        self._firsts: list[str] = [""]
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: str) -> bool:
        return key in self._blocks[bisect_right(self._firsts, key) - 1]

    def __iter__(self) -> Iterator[str]:
        """Every id, in the order of blocks only; nothing may change meanwhile."""
        for block in self._blocks:
            yield from block

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    def get(self, key: str) -> V | None:
        """The value of an id, or None."""
        return self._blocks[bisect_right(self._firsts, key) - 1].get(key)

    def put(self, key: str, value: V) -> V | None:
        """Set the value of an id, and keep this very string; the value before, or None."""
        at = bisect_right(self._firsts, key) - 1
        block = self._blocks[at]
        before = len(block)
        old = block.pop(key, None)
        block[key] = value
        if len(block) != before:
            self._size += 1
            if before == BLOCK_MAX:
                self._split(at, key)
        return old

    def pop(self, key: str) -> V | None:
        """Remove an id; its value, or None if it was not there."""
        at = bisect_right(self._firsts, key) - 1
        block = self._blocks[at]
        before = len(block)
        value = block.pop(key, None)
        if len(block) != before:
            self._size -= 1
            if before <= _BLOCK_MIN and len(self._blocks) > 1:
                self._join(at)
        return value

    def following(self, key: str, limit: int = BLOCK_MAX) -> list[tuple[str, V]]:
        """Up to ``limit`` ids behind ``key`` in order, with their values; fewer where a block ends.

        None at the end. "" is before every id. Costs a sorted block, 0.1 ms.
        """
        for at in range(bisect_right(self._firsts, key) - 1, len(self._blocks)):
            block = self._blocks[at]
            found = sorted(block) if self._firsts[at] > key else sorted(k for k in block if k > key)
            if found:
                return [(one, block[one]) for one in found[:limit]]
        return []

    def _split(self, at: int, newest: str) -> None:
        block = self._blocks[at]
        keys = sorted(block)
        if newest == keys[-1] and at == len(self._blocks) - 1:
            # Ids that ascend leave full blocks behind.
            upper = {newest: block.pop(newest)}
        else:
            middle = len(keys) // 2
            upper = {key: block[key] for key in keys[middle:]}
            self._blocks[at] = {key: block[key] for key in keys[:middle]}
        self._blocks.insert(at + 1, upper)
        self._firsts.insert(at + 1, min(upper))

    def _join(self, at: int) -> None:
        """Let a block that has become small join the smaller of its neighbours."""
        blocks = self._blocks
        lower = at
        if at == len(blocks) - 1 or (at and len(blocks[at - 1]) < len(blocks[at + 1])):
            lower = at - 1
        if blocks[at] and len(blocks[lower]) + len(blocks[lower + 1]) > BLOCK_MAX // 2:
            return
        blocks[lower] = {**blocks[lower], **blocks[lower + 1]}
        del blocks[lower + 1], self._firsts[lower + 1]


class IdList:
    """A set of ids, in order."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: list[list[str]] = []  # none of them empty

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def __contains__(self, key: str) -> bool:
        block = self._blocks[self._find(key)] if self._blocks else []
        position = bisect_left(block, key)
        return position < len(block) and block[position] == key

    def add(self, key: str) -> None:
        """Add an id that is not there."""
        blocks = self._blocks
        if not blocks:
            blocks.append([key])
            return
        if key > blocks[-1][-1]:
            at = len(blocks) - 1
            blocks[at].append(key)
        else:
            at = self._find(key)
            insort(blocks[at], key)
        block = blocks[at]
        if len(block) > BLOCK_MAX:
            middle = len(block) - 1 if block[-1] is key else len(block) // 2
            blocks.insert(at + 1, block[middle:])
            del block[middle:]

    def remove(self, key: str) -> None:
        """Remove an id that is there."""
        blocks = self._blocks
        at = self._find(key)
        block = blocks[at]
        position = bisect_left(block, key)
        assert block[position] == key, "only what was added is removed"
        del block[position]
        if not block:
            del blocks[at]
        elif len(block) <= _BLOCK_MIN and at and len(blocks[at - 1]) <= _BLOCK_MIN:
            blocks[at - 1] += block
            del blocks[at]

    def same(self, key: str) -> str:
        """The string that is kept for an id that is there; whoever keeps the id shares it."""
        block = self._blocks[self._find(key)]
        return block[bisect_left(block, key)]

    def following(self, key: str, limit: int) -> list[str]:
        """Up to ``limit`` ids behind ``key``, in order; fewer only where a block ends."""
        blocks = self._blocks
        if not blocks:
            return []
        at = self._find(key)
        position = bisect_right(blocks[at], key)
        if position == len(blocks[at]):
            if at + 1 == len(blocks):
                return []
            at, position = at + 1, 0
        return blocks[at][position : position + limit]

    def _find(self, key: str) -> int:
        blocks = self._blocks
        if len(blocks) == 1:
            return 0
        return max(0, bisect_right(blocks, key, key=_first) - 1)


_first = itemgetter(0)
