"""The messages of gRPC's own services, in a descriptor pool of their own.

Written out here because every package that ships them registers the same names in
protobuf's default pool, where the second one to be imported fails: a process that
serves must be able to import any client's generated code. Numbers and names are
those of grpc/health/v1/health.proto, grpc/reflection/v1/reflection.proto (v1alpha
is the same under another package) and google/rpc/status.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    EnumValueDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    OneofDescriptorProto,
    ServiceDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

Fields: TypeAlias = Mapping[str, tuple[int, str]]

_SCALARS = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int32": FieldDescriptorProto.TYPE_INT32,
}


def _message(name: str, fields: Fields, *, package: str, oneof: str = "") -> DescriptorProto:
    """A message; a field's type is a scalar's, a message's or (``enum:``) an enum's name, after
    ``repeated`` or ``oneof`` where it is one.
    """
    message = DescriptorProto(name=name)
    if oneof:
        message.oneof_decl.append(OneofDescriptorProto(name=oneof))
    for field_name, (number, kind) in fields.items():
        rule, _, type_name = kind.rpartition(" ")
        field = FieldDescriptorProto(
            name=field_name,
            number=number,
            label=FieldDescriptorProto.LABEL_REPEATED
            if rule == "repeated"
            else FieldDescriptorProto.LABEL_OPTIONAL,
        )
        if rule == "oneof":
            field.oneof_index = 0
        if type_name in _SCALARS:
            field.type = _SCALARS[type_name]
        else:
            is_enum = type_name.startswith("enum:")
            field.type = (
                FieldDescriptorProto.TYPE_ENUM if is_enum else FieldDescriptorProto.TYPE_MESSAGE
            )
            field.type_name = f".{package}.{type_name.removeprefix('enum:')}"
        message.field.append(field)
    return message


def _health_file() -> FileDescriptorProto:
    package = "grpc.health.v1"
    response = _message(
        "HealthCheckResponse",
        {"status": (1, "enum:HealthCheckResponse.ServingStatus")},
        package=package,
    )
    names = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
    response.enum_type.append(
        EnumDescriptorProto(
            name="ServingStatus",
            value=[EnumValueDescriptorProto(name=n, number=i) for i, n in enumerate(names)],
        )
    )
    return FileDescriptorProto(
        name="grpc/health/v1/health.proto",
        package=package,
        syntax="proto3",
        message_type=[
            _message("HealthCheckRequest", {"service": (1, "string")}, package=package),
            response,
        ],
        service=[
            ServiceDescriptorProto(
                name="Health",
                method=[
                    _method("Check", package, "HealthCheckRequest", "HealthCheckResponse"),
                    _method(
                        "Watch",
                        package,
                        "HealthCheckRequest",
                        "HealthCheckResponse",
                        server_streaming=True,
                    ),
                ],
            )
        ],
    )


def _method(
    name: str, package: str, request: str, response: str, **streaming: Any
) -> MethodDescriptorProto:
    return MethodDescriptorProto(
        name=name,
        input_type=f".{package}.{request}",
        output_type=f".{package}.{response}",
        **streaming,
    )


def _reflection_file(version: str) -> FileDescriptorProto:
    package = f"grpc.reflection.{version}"

    def message(name: str, fields: Fields, oneof: str = "") -> DescriptorProto:
        return _message(name, fields, package=package, oneof=oneof)

    return FileDescriptorProto(
        name=f"grpc/reflection/{version}/reflection.proto",
        package=package,
        syntax="proto3",
        message_type=[
            message(
                "ServerReflectionRequest",
                {
                    "host": (1, "string"),
                    "file_by_filename": (3, "oneof string"),
                    "file_containing_symbol": (4, "oneof string"),
                    "file_containing_extension": (5, "oneof ExtensionRequest"),
                    "all_extension_numbers_of_type": (6, "oneof string"),
                    "list_services": (7, "oneof string"),
                },
                "message_request",
            ),
            message(
                "ExtensionRequest",
                {"containing_type": (1, "string"), "extension_number": (2, "int32")},
            ),
            message(
                "ServerReflectionResponse",
                {
                    "valid_host": (1, "string"),
                    "original_request": (2, "ServerReflectionRequest"),
                    "file_descriptor_response": (4, "oneof FileDescriptorResponse"),
                    "all_extension_numbers_response": (5, "oneof ExtensionNumberResponse"),
                    "list_services_response": (6, "oneof ListServiceResponse"),
                    "error_response": (7, "oneof ErrorResponse"),
                },
                "message_response",
            ),
            message("FileDescriptorResponse", {"file_descriptor_proto": (1, "repeated bytes")}),
            message(
                "ExtensionNumberResponse",
                {"base_type_name": (1, "string"), "extension_number": (2, "repeated int32")},
            ),
            message("ListServiceResponse", {"service": (1, "repeated ServiceResponse")}),
            message("ServiceResponse", {"name": (1, "string")}),
            message("ErrorResponse", {"error_code": (1, "int32"), "error_message": (2, "string")}),
        ],
        service=[
            ServiceDescriptorProto(
                name="ServerReflection",
                method=[
                    _method(
                        "ServerReflectionInfo",
                        package,
                        "ServerReflectionRequest",
                        "ServerReflectionResponse",
                        client_streaming=True,
                        server_streaming=True,
                    )
                ],
            )
        ],
    )


def _status_file() -> FileDescriptorProto:
    package = "google.rpc"
    return FileDescriptorProto(
        name="google/rpc/status.proto",
        package=package,
        syntax="proto3",
        message_type=[
            # Any in full: the real one would have to come from the default pool.
            _message("Any", {"type_url": (1, "string"), "value": (2, "bytes")}, package=package),
            _message(
                "Status",
                {"code": (1, "int32"), "message": (2, "string"), "details": (3, "repeated Any")},
                package=package,
            ),
        ],
    )


HEALTH_FILE = _health_file()
REFLECTION_FILES = {version: _reflection_file(version) for version in ("v1", "v1alpha")}

_pool = DescriptorPool()
for _file in (HEALTH_FILE, *REFLECTION_FILES.values(), _status_file()):
    _pool.Add(_file)


def message_class(full_name: str) -> Any:
    """The class of one of the messages above."""
    return GetMessageClass(_pool.FindMessageTypeByName(full_name))
