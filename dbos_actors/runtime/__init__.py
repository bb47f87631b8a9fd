"""A generic runtime for virtual actors on Trio. Knows nothing of DBOS or Redis."""

from dbos_actors.runtime.actor_cell import ActorCell, ActorLimits, State, Waiter
from dbos_actors.runtime.mailbox_budget import MailboxBudget
from dbos_actors.runtime.retry import until_available
from dbos_actors.runtime.supervisor import Supervisor, SupervisorLimits, SupervisorStatistics
from dbos_actors.runtime.turn import (
    AGAIN,
    DEFERRED,
    Again,
    Behaviour,
    Call,
    CommitLog,
    Deferred,
    Job,
    Reply,
    Turn,
)

__all__ = [
    "AGAIN",
    "DEFERRED",
    "ActorCell",
    "ActorLimits",
    "Again",
    "Behaviour",
    "Call",
    "CommitLog",
    "Deferred",
    "Job",
    "MailboxBudget",
    "Reply",
    "State",
    "Supervisor",
    "SupervisorLimits",
    "SupervisorStatistics",
    "Turn",
    "Waiter",
    "until_available",
]
