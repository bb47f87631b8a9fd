"""A watch that a test drives by hand, over grpcio."""

from __future__ import annotations

import threading
from typing import Any, Self

import grpc

from dbos_actors.api.messages import Event, WatchRequest, WatchResponse
from tests.support.clients import TIMEOUT_S, CallError


class HandWatch:
    """One Watch stream; `events` collects what came, in order."""

    def __init__(self, address: str, *, reads: bool = True, **request: Any) -> None:
        """``reads``: from the start; if not, only once `read` is called."""
        self.events: list[Event] = []
        self.responses = 0
        self.fell_behind = 0
        self.cursor = ""
        self.began_at = ""
        """The cursor of the first response."""
        self._changed = threading.Condition()
        self._ended: CallError | None = None
        self._is_over = False
        # It takes as much ahead as HTTP/2 allows at least, so that one that does not read is slow.
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 65_535),
        ]
        self._channel = grpc.insecure_channel(address, options)
        method = self._channel.unary_stream(
            "/dbos.DBOS/Watch",
            request_serializer=WatchRequest.SerializeToString,
            response_deserializer=WatchResponse.FromString,
        )
        self._call = method(WatchRequest(**request))
        self._thread = threading.Thread(target=self._read, name="watch")
        if reads:
            self.read()

    def read(self) -> None:
        """Begin to read."""
        self._thread.start()

    def wait_begun(self) -> str:
        """Wait for the first response; its cursor."""
        self._wait(lambda: self.responses > 0, TIMEOUT_S)
        return self.began_at

    def wait_events(self, count: int, timeout_s: float = TIMEOUT_S) -> list[Event]:
        """All events that came, once there are so many."""
        self._wait(lambda: len(self.events) >= count, timeout_s)
        return list(self.events)

    def wait_responses(self, count: int) -> None:
        self._wait(lambda: self.responses >= count, TIMEOUT_S)

    def wait_end(self, timeout_s: float = TIMEOUT_S) -> CallError:
        """The status with which it ended."""
        self._wait(lambda: self._is_over, timeout_s)
        assert self._ended is not None
        return self._ended

    def cut(self) -> None:
        """End the call without a word, and wait until no more comes."""
        self._call.cancel()
        if self._thread.ident is not None:
            self._thread.join()

    def _wait(self, condition: Any, timeout_s: float) -> None:
        with self._changed:
            done = self._changed.wait_for(condition, timeout_s)
        assert done, (len(self.events), self.responses, self._ended)

    def _read(self) -> None:
        try:
            for response in self._call:
                with self._changed:
                    if not self.responses:
                        self.began_at = response.cursor
                    self.responses += 1
                    self.events += response.events
                    self.cursor = response.cursor
                    self.fell_behind += response.fell_behind
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self._ended = CallError(error.code().name, error.details())
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cut()
        self._channel.close()
