"""gRPC's own services, asked by gRPC's own client packages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest
import trio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpclib.const import Status

from dbos_actors.api import messages
from dbos_actors.rpc.server import health
from dbos_actors.rpc.server.health import Health
from dbos_actors.rpc.server.reflection import reflection_services
from dbos_actors.rpc.server.server import Server

Serve = Callable[[Server], AbstractAsyncContextManager[str]]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def server_of(*services: Any) -> Server:
    return Server(unary={}, services=services, status_of=lambda e: (Status.UNKNOWN, str(e)))


async def in_thread(address: str, client: Callable[[grpc.Channel], Any]) -> Any:
    def run() -> Any:
        with grpc.insecure_channel(address) as channel:
            return client(channel)

    return await trio.to_thread.run_sync(run)


async def test_a_check_tells_the_status_now(serve: Serve) -> None:
    service = Health(["dbos.DBOS"])

    def check(channel: grpc.Channel, name: str) -> Any:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status

    def check_unknown(channel: grpc.Channel) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            check(channel, "who")
        return caught.value.code()

    async with serve(server_of(service)) as address:
        assert await in_thread(address, lambda channel: check(channel, "")) == NOT_SERVING
        service.set(True)
        assert await in_thread(address, lambda channel: check(channel, "dbos.DBOS")) == SERVING
        service.set(False, "dbos.DBOS")
        assert await in_thread(address, lambda channel: check(channel, "")) == SERVING
        assert await in_thread(address, check_unknown) is grpc.StatusCode.NOT_FOUND


async def test_a_watch_tells_every_change(serve: Serve) -> None:
    service = Health()

    def watch(channel: grpc.Channel) -> list[int]:
        stub = health_pb2_grpc.HealthStub(channel)
        known = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="later"), timeout=10)
        statuses = [next(known).status, next(unknown).status]
        trio.from_thread.run_sync(service.set, True)
        statuses.append(next(known).status)
        trio.from_thread.run_sync(service.set, True)
        trio.from_thread.run_sync(service.set, False, "later")
        statuses.append(next(unknown).status)
        known.cancel()
        unknown.cancel()
        return statuses

    server = server_of(service)
    async with serve(server) as address:
        statuses = await in_thread(address, watch)
        while server.statistics().calls_live:
            await trio.lowlevel.checkpoint()
    assert statuses == [NOT_SERVING, SERVICE_UNKNOWN, SERVING, NOT_SERVING]


async def test_reflection_describes_services_of_a_private_pool(serve: Serve) -> None:
    contract = FileDescriptorProto()
    messages.DESCRIPTOR.CopyToProto(contract)
    files = [contract, health.FILE]

    def client(channel: grpc.Channel) -> Any:
        database = ProtoReflectionDescriptorDatabase(channel)
        service = DescriptorPool(database).FindServiceByName("dbos.DBOS")
        names = [method.name for method in service.methods]
        return sorted(database.get_services()), names, service.methods[0].input_type.full_name

    async with serve(server_of(Health(), *reflection_services(files))) as address:
        services, methods, request = await in_thread(address, client)
    assert services == [
        "dbos.DBOS",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    assert methods == [
        method.name for method in messages.DESCRIPTOR.services_by_name["DBOS"].methods
    ]
    assert request.startswith("dbos.")


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_answers_every_kind_of_question(serve: Serve, version: str) -> None:
    base = FileDescriptorProto(name="base.proto", package="p", syntax="proto2")
    message = base.message_type.add(name="M")
    message.extension_range.add(start=100, end=200)
    top = FileDescriptorProto(name="top.proto", package="p", dependency=["base.proto"])
    top.extension.add(name="e", number=100, type=9, label=1, extendee=".p.M")
    ask_for = reflection_pb2.ServerReflectionRequest
    requests = [
        ask_for(file_by_filename="top.proto"),
        ask_for(file_containing_symbol="p.M"),
        ask_for(
            file_containing_extension=reflection_pb2.ExtensionRequest(
                containing_type="p.M", extension_number=100
            )
        ),
        ask_for(all_extension_numbers_of_type="p.M"),
        ask_for(file_by_filename="nothing.proto"),
        ask_for(),
    ]

    def client(channel: grpc.Channel) -> Any:
        ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=ask_for.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        return list(ask(iter(requests), timeout=10))

    async with serve(server_of(*reflection_services([base, top]))) as address:
        answers = await in_thread(address, client)

    def files(answer: Any) -> list[str]:
        found = answer.file_descriptor_response.file_descriptor_proto
        return [FileDescriptorProto.FromString(data).name for data in found]

    assert [files(answer) for answer in answers[:3]] == [
        ["top.proto", "base.proto"],
        ["base.proto"],
        ["top.proto", "base.proto"],
    ]
    assert list(answers[3].all_extension_numbers_response.extension_number) == [100]
    assert [answer.error_response.error_code for answer in answers[4:]] == [5, 3]
    assert answers[0].original_request == requests[0]
