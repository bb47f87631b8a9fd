"""The store's settings, its state and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How the store behaves; every default says where its number is from."""

    partition: str = "p0"
    """Which part of the agents; names the keys' hash tag."""

    server_address: str = ""
    """Where this server serves: told to another one that wants to own the store."""

    take_over: bool = False
    """Take the store from a live owner, which then stops."""

    durability: Literal["replay", "fsync"] = "replay"
    """``fsync`` requires ``appendfsync always``, so that every reply implies an fsync."""

    require_safe: bool = False
    """Refuse to start and to write, instead of warning, when Redis may lose acknowledged writes."""

    refuse_loss: bool = False
    """Serve nothing from a Redis that came back older than what can be sent again."""

    inspection_s: float = 5.0
    """How often the configuration of Redis is looked at: as long as what is acknowledged meanwhile
    can be sent again to a Redis that lost it. A look takes a tenth of a millisecond."""

    argument_bytes: int = 0
    """The longest argument of a command that may be sent; a Redis that does not read so much would
    close the connection at each attempt. 0: any Redis will do."""

    argument_setting: str = ""
    """The setting that ``argument_bytes`` follows from, with its value, for messages."""

    batch_submissions: int = 2_000
    """At most so many in one commit: some 10 ms of Redis's time, which others wait for."""

    batch_bytes: int = 8 << 20
    """At most so many bytes in one commit, unless one submission alone is larger."""

    queue_bytes: int = 64 << 20
    """Waiting for their commit; beyond it submissions are refused. Four seconds of the
    design load of 15,000 results a second."""

    replay_s: float = 5.0
    """Commits younger than this can be sent again to a Redis that lost them. ``everysec`` loses
    one second, two when the disk is slow; the rest is margin."""

    replay_bytes: int = 512 << 20
    """At most so much of them. An eighth of it may be written at once, the rest in each
    ``replay_s`` (see `pace`): 94 MB a second, six times the design load."""

    lease_s: float = 5.0
    """A second server that respects the lease waits this long after the owner is silent."""

    renewal_s: float = 1.0
    """How often the lease is renewed, and so how soon a fenced server notices."""

    wait_timeout_s: float = 5.0
    """How long a call without a nearer deadline waits for a Redis that is away."""

    stall_s: float = 0.5
    """A commit unanswered for so long means that Redis is away, though the connection stands.
    Far above any commit of a healthy Redis, far below the wait_timeouts of callers."""

    reply_timeout_s: float = 10.0
    """A connection that is silent for so long is given up and opened again. Longer than the pauses
    of a large Redis (fork, AOF rewrite), which heal by themselves."""

    connect_timeout_s: float = 5.0
    """For the name lookup, TCP, TLS and authentication together."""

    backoff_s: float = 0.05
    """Before the second attempt to reconnect; doubles each time, with full jitter."""

    backoff_max_s: float = 2.0
    """The longest pause between two attempts."""

    read_commands: int = 5_000
    """At most so many commands in one batch of reads: some 10 ms of Redis's time."""

    read_bytes: int = 32 << 20
    """At most so many bytes of replies in one batch of reads, unless one read alone brings more:
    30 of the largest results."""

    read_queue_commands: int = 100_000
    """Waiting to be read; beyond it reads are refused. An activation of every agent that may be
    resident fits."""

    close_timeout_s: float = 2.0
    """How long closing may take to commit what waits and to release the lease."""


class StoreState(Enum):
    """Whether commits are being answered."""

    CONNECTED = "connected"
    AWAY = "away"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class StoreWarning:
    """A way in which the Redis at hand may lose acknowledged writes."""

    name: str
    """Stable, for logs and metrics: the directive or the fact."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """Figures since the start, and what is held now."""

    state: StoreState
    epoch: int
    sequence: int
    commits: int
    commit_seconds: float
    """From sending a commit to its answer, over all of them."""
    committed_bytes: int
    """Of these commits, as they were sent."""
    commits_repeated: int
    commits_refused: int
    submissions_committed: int
    submissions_refused: int
    waits_given_up: int
    """Callers, of writes and reads, told that Redis is away."""
    command_errors: int
    """Commands that failed inside successful commits: their keys are damaged."""
    batches_lost: int
    """Acknowledged commits that Redis lost and that could no longer be sent again."""
    losses_refused: int
    """How often a Redis that came back so was refused; see `StoreSettings.refuse_loss`."""
    reloads: int
    reconnects: int
    lease_renewals_failed: int
    warnings: int
    """Ways in which Redis may lose acknowledged writes, now."""
    writes_forbidden: bool
    """Whether writes are refused, because Redis is not as a setting demands."""
    queued_submissions: int
    queued_bytes: int
    replayable_batches: int
    """Commits that can be sent again to a Redis that lost them."""
    replayable_bytes: int
    in_flight_submissions: int
    reads: int
    read_round_trips: int
    queued_reads: int
