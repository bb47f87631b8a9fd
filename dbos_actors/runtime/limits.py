"""Bounds on one actor, and on a family of them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorLimits:
    """Bounds on one actor, in OTP's words."""

    mailbox_messages: int = 1_000
    """Messages waiting or parked; the next is refused with RESOURCE_EXHAUSTED. A thousand
    is the burst of a whole connection's streams; at 20 us a turn it drains in 20 ms."""

    intensity: int = 5
    """Restarts within `period_s` before the actor is quarantined."""

    period_s: float = 10.0
    quarantine_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorLimits:
    """Bounds on a family of actors."""

    actor: ActorLimits = field(default_factory=ActorLimits)

    mailbox_bytes: int = 64 * 1024 * 1024
    """Of all messages that wait for their turn, over all actors; beyond it RESOURCE_EXHAUSTED.
    As much as may wait for its commit."""

    max_resident: int = 100_000
    """Actors in memory; beyond it the least recently used idle ones leave. 100,000 with a
    few runs each were measured to fit in 1 GB."""

    idle_s: float = 300.0
    """An actor without messages for at least this long leaves memory the next time the hand
    comes by; a lap takes about as long."""
