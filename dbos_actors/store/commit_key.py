"""What the value of the commit key says about where the store stands. Pure."""

from __future__ import annotations

from dbos_actors.errors import FencedError
from dbos_actors.store.batch import damaged_commit_key

BASE = -1
"""The place of a store that has what it had before this server took it, and nothing since."""

OLDER = -2
"""The place of a store that is older than that."""


def parse_key(value: bytes | None) -> tuple[int, int] | None:
    """``epoch:sequence`` of a commit key's value; None if it has another form."""
    epoch, colon, sequence = (value or b"").partition(b":")
    if not (colon and epoch.isdigit() and sequence.isdigit()):
        return None
    return int(epoch), int(sequence)


class CommitKey:
    """The commit key as this server, in its epoch, writes and understands it."""

    __slots__ = ("_base", "epoch", "name")

    def __init__(self, name: str, *, epoch: int, base: bytes | None) -> None:
        """``base`` is what the key held before this server took the store; ``name`` names it."""
        self.name = name
        self.epoch = epoch
        self._base = base

    def value_at(self, sequence: int) -> bytes:
        """The key after the commit ``sequence`` of this epoch."""
        return b"%d:%d" % (self.epoch, sequence)

    def includes(self, value: bytes | None, sequence: int) -> bool:
        """Whether a store with this value is ours and has all up to the commit ``sequence``."""
        key = parse_key(value)
        return key is not None and key[0] == self.epoch and key[1] >= sequence

    def position_of(self, value: bytes | None) -> int:
        """The sequence that a value stands for, or `BASE`, or `OLDER`.

        Raises:
            FencedError: another server has taken the store.
            UnusableStoreError: it is no epoch and sequence.
        """
        if value == self._base:
            return BASE
        key = parse_key(value)
        if key is None:
            if value is not None:
                raise damaged_commit_key(self.name, f"holds {value[:100]!r}")
            return OLDER
        epoch, sequence = key
        if epoch == self.epoch:
            return sequence
        base = parse_key(self._base)
        if base is None or (epoch, sequence) > base:
            # Another server's: a later epoch, or an owner before us that still writes.
            raise self.fenced(value)
        return OLDER

    def fenced(self, value: bytes | None) -> FencedError:
        """The error for a value that another server has written."""
        held = (value or b"nothing").decode(errors="replace")
        return FencedError(
            f"another server has taken the store over: the commit key holds {held}, "
            f"this server's epoch is {self.epoch}"
        )
