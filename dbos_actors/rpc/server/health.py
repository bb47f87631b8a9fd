"""The health service, grpc.health.v1 (gRPC's health.md): Check and Watch, on Trio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import trio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.wire.schemas import HEALTH_FILE, message_class

HealthCheckRequest = message_class("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = message_class("grpc.health.v1.HealthCheckResponse")

OVERALL = ""
"""The server as a whole."""

FILE = HEALTH_FILE
"""The service's descriptor, for reflection."""


class Health:
    """Which services serve. All begin as not serving; `set` changes that and tells who watches.

    Those of ``always_serving`` serve from the beginning to the end, whatever is said of all.
    """

    def __init__(self, services: Iterable[str] = (), *, always_serving: Iterable[str] = ()) -> None:
        self._changing = (OVERALL, *services)
        self._serving = dict.fromkeys(self._changing, False) | dict.fromkeys(always_serving, True)
        self._changed = trio.lowlevel.ParkingLot()
        self._closed = False

    def close(self) -> None:
        """Nothing is serving any more, and whoever watches is told so and sent away."""
        self._closed = True
        self.set(False)

    def set(self, serving: bool, *services: str) -> None:
        """Say whether the services (all that may change, if none is named) are serving."""
        for service in services or self._changing:
            self._serving[service] = serving and not self._closed
        self._changed.unpark_all()

    def is_serving(self, service: str = OVERALL) -> bool:
        """Whether a service that was named at the beginning serves."""
        return self._serving[service]

    def _status(self, service: str) -> Any:
        serving = self._serving.get(service)
        if serving is None:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    async def check(self, stream: ServerStream[Any, Any]) -> None:
        """The status now; NOT_FOUND for a service that is not known."""
        request = await stream.recv_message()
        assert request is not None
        if request.service not in self._serving:
            raise GRPCError(Status.NOT_FOUND, "unknown service")
        await stream.send_message(HealthCheckResponse(status=self._status(request.service)))

    async def watch(self, stream: ServerStream[Any, Any]) -> None:
        """The status now, and again whenever it has changed, until the client has enough.

        A client that reads slowly skips what it was too late for.
        """
        request = await stream.recv_message()
        assert request is not None
        sent = None
        while True:
            status = self._status(request.service)
            if status != sent:
                sent = status
                await stream.send_message(HealthCheckResponse(status=status))
            elif self._closed:
                raise GRPCError(Status.UNAVAILABLE, "the server is shutting down")
            else:
                await self._changed.park()

    def __mapping__(self) -> Mapping[str, Handler]:
        """As a grpclib service."""
        types = (HealthCheckRequest, HealthCheckResponse)
        return {
            "/grpc.health.v1.Health/Check": Handler(self.check, Cardinality.UNARY_UNARY, *types),
            "/grpc.health.v1.Health/Watch": Handler(self.watch, Cardinality.UNARY_STREAM, *types),
        }
