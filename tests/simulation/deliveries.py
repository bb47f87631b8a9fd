"""What leases say about deliveries: none is early, and a key is answered as it was before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.simulation.history import Ending, History, Operation
from tests.simulation.subscribing import AGENT

Calls = Mapping[str, Sequence[Operation]]
"""Calls by task."""


def early_deliveries(history: History) -> list[str]:
    """Tasks handed to a second worker although the first one's lease still ran."""
    granted: dict[str, list[tuple[Operation, str]]] = defaultdict(list)
    for operation in history.operations:
        if operation.method == "LeaseTasks" and operation.ending is Ending.ANSWERED:
            for task in operation.answer.tasks:
                granted[task.id].append((operation, task.lease_token))
    touching = _touching(history)
    return [
        f"{task_id} was delivered again before its lease ended:\n    {one}\n    {two}"
        for task_id, operations in granted.items()
        for (one, token), (two, other_token) in pairwise(operations)
        if token != other_token
        and one.end is not None
        and one.end < two.start
        and two.end_s < one.start_s + one.request["lease_seconds"]
        and not _is_touched(task_id, touching, one, two)
    ]


def other_deliveries(history: History) -> list[str]:
    """Leases asked for again with their key while they ran, and answered with other deliveries."""
    answered: dict[tuple[Any, ...], list[Operation]] = defaultdict(list)
    # The lease may have begun as soon as it was asked for first, by a call without an answer too.
    first_asked_s: dict[tuple[Any, ...], float] = {}
    found = []
    for two in history.operations:
        key = two.request.get("request_key")
        if two.method != "LeaseTasks" or not key:
            continue
        begun_s = first_asked_s.setdefault((key, two.request["worker_id"]), two.start_s)
        if two.ending is not Ending.ANSWERED:
            continue
        deliveries = {(task.id, task.lease_token) for task in two.answer.tasks}
        before = answered[key, two.request["worker_id"]]
        found += [
            f"a lease asked for again got other tasks:\n    {one}\n    {two}"
            for one in before
            if one.answer.tasks
            and two.end_s < begun_s + one.request["lease_seconds"]
            and not deliveries <= {(task.id, task.lease_token) for task in one.answer.tasks}
        ]
        before.append(two)
    return found


def missing_deliveries(history: History) -> list[str]:
    """Leases asked for again with their key while they ran, and answered without a delivery."""
    touching = _touching(history)
    first_asked_s: dict[str, float] = {}
    answered: dict[str, list[Operation]] = defaultdict(list)
    found = []
    for two in history.operations:
        key = two.request.get("request_key")
        if two.method != "LeaseTasks" or not key:
            continue
        begun_s = first_asked_s.setdefault(key, two.start_s)
        if two.ending is not Ending.ANSWERED or two.server in history.overtaken:
            continue
        has = {task.lease_token for task in two.answer.tasks}
        found += [
            f"a lease of {task.id} asked for again got an answer without it:\n    {one}\n    {two}"
            for one in answered[key]
            if two.end_s < begun_s + one.request["lease_seconds"]
            for task in one.answer.tasks
            if task.lease_token not in has
            and task.agent_id != AGENT
            and not _is_touched(task.id, touching, one, two)
        ]
        answered[key].append(two)
    return found


def _touching(history: History) -> Calls:
    """The calls that may end a lease, by the task."""
    touching: dict[str, list[Operation]] = defaultdict(list)
    scheduled: dict[str, set[str]] = defaultdict(set)
    for operation in history.operations:
        request: dict[str, Any] = operation.request
        match operation.method:
            case "AckTask" | "NackTask" | "CancelTask" | "RequeueTask":
                touching[request["task_id"]].append(operation)
            case "ScheduleTask":
                task = request["task"]
                touching[task["id"]].append(operation)
                scheduled[task["agent_id"]].add(task["id"])
            case "DeleteAgent":
                for task_id in scheduled[request["agent_id"]]:
                    touching[task_id].append(operation)
    return touching


def _is_touched(task_id: str, touching: Calls, one: Operation, two: Operation) -> bool:
    """Whether a call may have ended a lease between two leases."""
    return any(
        each.start < (two.end or 0) and (each.ending is Ending.UNKNOWN or each.end > one.start)
        for each in touching.get(task_id, ())
        if each.end is not None
    )
