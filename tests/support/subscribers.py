"""A subscriber of tasks that a test drives by hand, over grpcio."""

from __future__ import annotations

import queue
import threading
from typing import Any, Self

import grpc

from dbos_actors.api.messages import SubscribeTasksRequest, SubscribeTasksResponse, Task
from tests.support.clients import TIMEOUT_S, CallError

Outcome = SubscribeTasksResponse.Outcome


class HandSubscriber:
    """One SubscribeTasks stream; `tasks` and `outcomes` collect what came, in order."""

    def __init__(self, address: str, **start: Any) -> None:
        self.tasks: list[Task] = []
        self.outcomes: list[Outcome] = []
        self.messages = 0
        self._changed = threading.Condition()
        self._ended: CallError | None = None
        self._is_over = False
        self._requests: queue.SimpleQueue[SubscribeTasksRequest | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(address)
        method = self._channel.stream_stream(
            "/dbos.DBOS/SubscribeTasks",
            request_serializer=SubscribeTasksRequest.SerializeToString,
            response_deserializer=SubscribeTasksResponse.FromString,
        )
        self.send(start=SubscribeTasksRequest.Start(**start))
        self._call = method(iter(self._requests.get, None))
        self._thread = threading.Thread(target=self._read, name="subscriber")
        self._thread.start()

    def send(self, **request: Any) -> None:
        """Send one request: ``ack={"task_id": ...}`` and so on."""
        self._requests.put(SubscribeTasksRequest(**request))

    def ack(self, *tasks: Task) -> None:
        for task in tasks:
            self.send(ack={"task_id": task.id, "lease_token": task.lease_token})

    def nack(self, task: Task, **fields: Any) -> None:
        self.send(nack={"task_id": task.id, "lease_token": task.lease_token, **fields})

    def wait_tasks(self, count: int, timeout_s: float = TIMEOUT_S) -> list[Task]:
        """All tasks that came, once there are so many."""
        self._wait(lambda: len(self.tasks) >= count, timeout_s)
        return list(self.tasks)

    def wait_outcomes(self, count: int, timeout_s: float = TIMEOUT_S) -> list[Outcome]:
        self._wait(lambda: len(self.outcomes) >= count, timeout_s)
        return list(self.outcomes)

    def wait_end(self) -> CallError | None:
        """How the stream ended; None is OK."""
        self._wait(lambda: self._is_over, TIMEOUT_S)
        return self._ended

    def _wait(self, condition: Any, timeout_s: float) -> None:
        with self._changed:
            done = self._changed.wait_for(condition, timeout_s)
        assert done, (len(self.tasks), len(self.outcomes), self._ended)

    def finish(self) -> CallError | None:
        """Send nothing more, and wait for the end."""
        self._requests.put(None)
        return self.wait_end()

    def vanish(self) -> None:
        """Be gone without a word."""
        self._call.cancel()

    def _read(self) -> None:
        try:
            for response in self._call:
                with self._changed:
                    self.messages += 1
                    self.tasks += response.tasks
                    self.outcomes += response.outcomes
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self._ended = CallError(error.code().name, error.details())
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._call.cancel()
        self._requests.put(None)
        self._thread.join()
        self._channel.close()
