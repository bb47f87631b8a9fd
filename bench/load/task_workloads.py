"""Workloads of tasks: schedule them, lease what is due, acknowledge what was leased."""

from __future__ import annotations

import time
from collections import deque

from bench.load.requests import (
    ANY,
    DBOS,
    FIRST_GAP,
    MODULES,
    Agents,
    Endless,
    Item,
    Parameters,
    Shape,
    by_id_and_agent,
)
from dbos_actors.api import messages


class ScheduleTask(Endless):
    """New tasks, due at once."""

    path = DBOS + "ScheduleTask"

    def __init__(self, parameters: Parameters) -> None:
        agents = Agents(parameters.agents)
        request = messages.ScheduleTaskRequest()
        task = request.task
        task.id = parameters.prefix + FIRST_GAP
        task.agent_id = agents.gap.decode()
        task.module_name = MODULES[0]
        task.payload = b'{"target":"192.0.2.1","packets":3,"size":64,"interval":1000}' * 3
        task.scheduled_at = int(time.time()) - 1
        task.created_at = task.scheduled_at
        shape = Shape(request.SerializeToString(), FIRST_GAP.encode(), agents.gap)
        super().__init__(by_id_and_agent([shape], agents.ids, parameters.count))


class Leases:
    """Tasks on their way from the leases of a load to its acknowledgements."""

    def __init__(self) -> None:
        self.ready: deque[tuple[str, str]] = deque()
        """Task ids and lease tokens, not acknowledged yet."""
        self.leased = 0


class LeaseTasks(Endless):
    """Leases due tasks of any agent, by the hundred, until ``known`` were leased."""

    path = DBOS + "LeaseTasks"
    expected = ANY
    tracks = True

    _LIMIT = 100
    _READY_MAX = 1_000
    """No more are leased while so many wait for their acknowledgement."""

    def __init__(self, parameters: Parameters, leases: Leases) -> None:
        super().__init__(iter(()))
        request = messages.LeaseTasksRequest(limit=self._LIMIT, lease_seconds=60, worker_id="bench")
        self._item = (Shape(request.SerializeToString()), b"", b"")
        self._leases = leases
        self._known = parameters.known
        self._next = self._more

    def _more(self) -> Item:
        leases = self._leases
        if leases.leased >= self._known or len(leases.ready) >= self._READY_MAX:
            raise StopIteration
        return self._item

    def completed(self, item: Item, body: bytes) -> None:  # noqa: ARG002 - of Workload
        tasks = messages.LeaseTasksResponse.FromString(body).tasks
        self._leases.leased += len(tasks)
        self._leases.ready.extend((task.id, task.lease_token) for task in tasks)


class AckTask(Endless):
    """Acknowledges what `LeaseTasks` of the same load has leased."""

    path = DBOS + "AckTask"
    tracks = True

    def __init__(self, parameters: Parameters, leases: Leases) -> None:  # noqa: ARG002 - alike
        super().__init__(iter(()))
        self._ready = leases.ready
        self._next = self._more

    def _more(self) -> Item:
        if not self._ready:
            raise StopIteration
        task_id, token = self._ready.popleft()
        request = messages.AckTaskRequest(task_id=task_id, lease_token=token)
        return Shape(request.SerializeToString()), b"", b""
