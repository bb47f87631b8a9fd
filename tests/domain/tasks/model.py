"""One task as the model of `test_book_model` has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Model:
    status: str
    flow: tuple[str, str]
    payload: bytes
    scheduled_at: int
    max_attempts: int
    deliveries: int = 0
    token: str = ""
    ended_by: str = ""
    deadline_s: float | None = None  # of a lease or delay, monotonic
    visible_at: int = 0
    span_s: int = 0
    finished_at: int = 0


def may_settle(task: Model | None, token: str, ended_by: str, *, is_due: bool) -> str:
    """What the model says of a settlement: yes, again or no."""
    if task is None:
        return "no"
    if token:
        if token != task.token:
            return "no"
        if task.status == "inflight":
            return "yes"
        return "again" if task.ended_by.startswith(ended_by) else "no"
    if task.status == "pending" and ended_by == task.ended_by == "nack":
        return "yes" if is_due else "again"
    if task.status in ("pending", "inflight"):
        return "yes"
    again = (ended_by, task.ended_by, task.status)
    repeats = (("ack", "ack unfenced", "completed"), ("nack", "nack", "dead"))
    return "again" if again in repeats else "no"
