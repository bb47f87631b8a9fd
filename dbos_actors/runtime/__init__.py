"""A generic runtime for virtual actors on Trio. Knows nothing of DBOS or Redis.

An actor's writes are commands, bytes that only its `CommitLog` understands.
"""

from dbos_actors.runtime.actor import Actor
from dbos_actors.runtime.actor_cell import ActorCell, State
from dbos_actors.runtime.call import Call, Reply, Waiter
from dbos_actors.runtime.limits import ActorLimits, SupervisorLimits
from dbos_actors.runtime.mailbox_budget import MailboxBudget
from dbos_actors.runtime.memory_log import MemoryLog
from dbos_actors.runtime.retry import until_available
from dbos_actors.runtime.supervisor import Supervisor, SupervisorStatistics
from dbos_actors.runtime.turn import (
    AGAIN,
    DEFERRED,
    Again,
    Behaviour,
    CommitLog,
    Deferred,
    Job,
    JobCell,
    Refusal,
    Turn,
    TurnOwner,
)

__all__ = [
    "AGAIN",
    "DEFERRED",
    "Actor",
    "ActorCell",
    "ActorLimits",
    "Again",
    "Behaviour",
    "Call",
    "CommitLog",
    "Deferred",
    "Job",
    "JobCell",
    "MailboxBudget",
    "MemoryLog",
    "Refusal",
    "Reply",
    "State",
    "Supervisor",
    "SupervisorLimits",
    "SupervisorStatistics",
    "Turn",
    "TurnOwner",
    "Waiter",
    "until_available",
]
