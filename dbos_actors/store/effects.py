"""What an answer of Redis means for those who wait. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dbos_actors.errors import DamagedKeyError, UnavailableError
from dbos_actors.store.batch import Batch, Entry
from dbos_actors.store.resp import key_of
from dbos_actors.store.submission import Owner


@dataclass(frozen=True, slots=True)
class Damage:
    """A command that failed inside a commit, which is in the store but for it."""

    error: DamagedKeyError
    # Whose command it was; empty: of a commit that was sent again, long after its answer.
    owner: str


@dataclass(slots=True)
class Effects:
    """What an event means for others; applied in the order of the fields."""

    # In the store. `replies` are those of all of them, in order; None: lost.
    committed: list[Entry] = field(default_factory=list)
    replies: list[object] | None = None
    # Not in the store, or in part; and the owners who must start again from it, each once.
    refused: list[Entry] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)
    error: UnavailableError | None = None
    # Why, for those owners who have a reason of their own, by the id of the owner.
    errors: dict[int, UnavailableError] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)
    # The store came back older than what can be sent again, by so many commits or more.
    lost_batches: int = 0
    # Talk to Redis again, on a new connection, after a pause: it refuses for now.
    reconnect: str | None = None

    def error_for(self, owner: Owner) -> UnavailableError:
        """Why this owner's submissions are refused."""
        error = self.errors.get(id(owner), self.error)
        assert error is not None
        return error

    def take_failures(self, batch: Batch, failed: Sequence[tuple[int, str]]) -> None:
        """The batch, whose entries are in `committed`, is in the store but for these commands.

        A submission with such a command is refused, and so is whatever its owner did after it
        in the batch: it was decided upon something that is not in the store.
        """
        commands = batch.commands()
        reasons = dict(failed)
        entries, replies = self.committed, self.replies
        self.committed = []
        replies_left: list[object] = []
        first = 0
        for entry in entries:
            submission = entry[0]
            after = first + len(submission.commands)
            owner = submission.owner
            for index in range(first, after):
                if index in reasons:
                    self._damage(commands[index], reasons.pop(index), owner)
            if id(owner) in self.errors:
                self.refused.append(entry)
            else:
                self.committed.append(entry)
                if replies is not None:
                    replies_left += replies[first:after]
            first = after
        for index, reason in reasons.items():
            self._damage(commands[index], reason, None)
        if replies is not None:
            self.replies = replies_left

    def _damage(self, command: Sequence[bytes], reason: str, owner: Owner | None) -> None:
        error = DamagedKeyError(
            command=command[0].decode(errors="replace"),
            key=key_of(command).decode(errors="replace"),
            reason=reason,
        )
        self.damage.append(Damage(error, "" if owner is None else owner.key))
        if owner is not None and id(owner) not in self.errors:
            self.errors[id(owner)] = error
            self.owners.append(owner)
            self.error = self.error or error


@dataclass(slots=True)
class Counts:
    """Events so far."""

    commits: int = 0
    repeated: int = 0
    refused: int = 0
    committed_bytes: int = 0
    submissions_committed: int = 0
    submissions_refused: int = 0
    batches_lost: int = 0
    reloads: int = 0
    renewals_failed: int = 0
    commands_failed: int = 0
    losses_refused: int = 0


def owners_of(batch: Batch, refused_commands: tuple[int, ...]) -> dict[int, Owner]:
    """Who is to blame, by id: the owners of the commands refused, else of any command."""
    owners: dict[int, Owner] = {}
    first = 0
    refused = iter(refused_commands)
    index = next(refused, None)
    for submission, _ in batch.entries:
        after = first + len(submission.commands)
        guilty = after > first if not refused_commands else index is not None and index < after
        while index is not None and index < after:
            index = next(refused, None)
        if guilty:
            owners[id(submission.owner)] = submission.owner
        first = after
    return owners


def without(entries: Iterable[Entry], owners: Iterable[int]) -> tuple[list[Entry], list[Entry]]:
    """Entries whose owners, by id, are none of these, and the others; both in order."""
    guilty = set(owners)
    kept: list[Entry] = []
    refused: list[Entry] = []
    for entry in entries:
        (refused if id(entry[0].owner) in guilty else kept).append(entry)
    return kept, refused
