"""A generic runtime for virtual actors on Trio. Knows nothing of DBOS or Redis."""

from dbos_actors.runtime.backlog import Backlog
from dbos_actors.runtime.cell import ActorLimits, Cell, State, Waiter
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
    "ActorLimits",
    "Again",
    "Backlog",
    "Behaviour",
    "Call",
    "Cell",
    "CommitLog",
    "Deferred",
    "Job",
    "Reply",
    "State",
    "Supervisor",
    "SupervisorLimits",
    "SupervisorStatistics",
    "Turn",
    "Waiter",
    "until_available",
]
