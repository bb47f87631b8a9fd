from __future__ import annotations

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from dbos_actors.rpc.wire.schemas import HEALTH_FILE, REFLECTION_FILES, message_class


def parts(file: FileDescriptorProto) -> dict[str, str]:
    """A file's messages and methods by name; what says nothing about the wire is left out."""
    messages = {
        message.name: DescriptorProto.FromString(message.SerializeToString())
        for message in file.message_type
    }
    for message in messages.values():
        for field in message.field:
            field.ClearField("json_name")
    methods = {
        f"{service.name}.{method.name}": method
        for service in file.service
        for method in service.method
    }
    return {"package": file.package, **{k: str(v) for k, v in {**messages, **methods}.items()}}


def published(file: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    return proto


@pytest.mark.parametrize(
    ("ours", "theirs", "left_out"),
    [
        (
            HEALTH_FILE,
            health_pb2.DESCRIPTOR,
            {"Health.List", "HealthListRequest", "HealthListResponse"},
        ),
        (REFLECTION_FILES["v1alpha"], reflection_pb2.DESCRIPTOR, set()),
    ],
    ids=["health", "reflection"],
)
def test_a_service_is_described_as_grpc_publishes_it(
    ours: FileDescriptorProto, theirs: FileDescriptor, left_out: set[str]
) -> None:
    expected = parts(published(theirs))
    assert left_out <= expected.keys()
    assert parts(ours) == {k: v for k, v in expected.items() if k not in left_out}


def test_the_versions_of_reflection_differ_in_their_package_alone() -> None:
    text = str(REFLECTION_FILES["v1"]).replace("reflection.v1", "reflection.v1alpha")
    assert text.replace("reflection/v1/", "reflection/v1alpha/") == str(REFLECTION_FILES["v1alpha"])


def test_a_status_holds_its_details_as_any_program_of_google_reads_them() -> None:
    status = message_class("google.rpc.Status")(code=5, message="m")
    status.details.add(type_url="type.googleapis.com/a.B", value=b"\x01")
    assert status.SerializeToString().hex() == (
        "080512016d1a1c0a17" + b"type.googleapis.com/a.B".hex() + "120101"
    )
