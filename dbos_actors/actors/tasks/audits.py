"""Audits of the task book, and the warning that tasks are dropped before their age."""

from __future__ import annotations

import trio

from dbos_actors.actors.tasks.context import SchedulerContext
from dbos_actors.actors.tasks.host import ActorHost
from dbos_actors.domain.tasks.audit import Audit
from dbos_actors.loggers import get_logger

logger = get_logger(__name__)

_AUDIT_EVERY_S = 600.0
_AUDIT_PAUSE_S = 0.02
"""Between two steps of an audit, each 1 to 4 ms at a million tasks."""

_WARN_EVERY_S = 60.0


class Audits:
    """Compares records, indexes and ledger again and again."""

    def __init__(self, host: ActorHost, context: SchedulerContext) -> None:
        self._host = host
        self._context = context
        self.audits = 0
        self.misplaced = 0
        self.strangers = 0
        self.imbalances = 0

    async def run(self) -> None:
        """Audit the book every ten minutes, until cancelled."""
        while True:
            await trio.sleep(_AUDIT_EVERY_S)
            await self.audit()

    async def audit(self) -> None:
        """Go through the whole book once and report what does not fit."""
        actor = self._host.actor
        if actor is None:
            return
        audit = Audit(actor.book)
        while True:
            if self._host.actor is not actor or not audit.step(self._context.clock.now()):
                break
            await trio.sleep(_AUDIT_PAUSE_S)
        findings = audit.findings
        self.audits += 1
        self.misplaced += findings.misplaced
        self.strangers += findings.strangers
        self.imbalances += bool(findings.imbalance)
        if not findings.clean:
            logger.error(
                "tasks_misplaced",
                misplaced=findings.misplaced,
                strangers=findings.strangers,
                imbalance=findings.imbalance,
                examples=findings.examples,
            )

    async def warn_of_early_retirement(self) -> None:
        """Log once a minute that tasks are dropped before their age, while they are."""
        reported = 0
        while True:
            await trio.sleep(_WARN_EVERY_S)
            early = self._context.counts.retired_early
            if early > reported:
                limits = self._context.limits
                logger.warning(
                    "tasks_retired_early",
                    count=early - reported,
                    completed_max=limits.completed_max,
                    dead_max=limits.dead_max,
                )
                reported = early
