"""Server reflection, v1 and v1alpha: tells clients such as grpcurl what is served.

Serves the files it is given, from a descriptor pool of its own, so that services whose
descriptors live in no default pool are described too, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpclib.const import Cardinality, Handler, Status

from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.wire.schemas import REFLECTION_FILES, message_class


def reflection_services(files: Collection[FileDescriptorProto]) -> list[Reflection]:
    """Both versions of the service, for the services in ``files`` and for themselves.

    ``files`` must hold whatever they import, each before what imports it.
    """
    all_files = [*files, *REFLECTION_FILES.values()]
    return [Reflection(version, all_files) for version in REFLECTION_FILES]


class Reflection:
    """grpc.reflection.<version>.ServerReflection."""

    def __init__(self, version: str, files: Iterable[FileDescriptorProto]) -> None:
        self._package = f"grpc.reflection.{version}"
        self._request = message_class(f"{self._package}.ServerReflectionRequest")
        self._response = message_class(f"{self._package}.ServerReflectionResponse")
        self._pool = DescriptorPool()
        services: set[str] = set()
        for file in files:
            self._pool.Add(file)
            prefix = f"{file.package}." if file.package else ""
            services.update(prefix + service.name for service in file.service)
        self._services = sorted(services)

    async def info(self, stream: ServerStream[Any, Any]) -> None:
        """Answer each request of the stream."""
        async for request in stream:
            response = self._response(valid_host=request.host, original_request=request)
            self._answer(request, response)
            await stream.send_message(response)

    def _answer(self, request: Any, response: Any) -> None:
        pool = self._pool
        try:
            match request.WhichOneof("message_request"):
                case "list_services":
                    for name in self._services:
                        response.list_services_response.service.add(name=name)
                case "file_by_filename":
                    self._add_file(response, pool.FindFileByName(request.file_by_filename))
                case "file_containing_symbol":
                    symbol = request.file_containing_symbol
                    self._add_file(response, pool.FindFileContainingSymbol(symbol))
                case "file_containing_extension":
                    asked = request.file_containing_extension
                    message = pool.FindMessageTypeByName(asked.containing_type)
                    extension = pool.FindExtensionByNumber(message, asked.extension_number)
                    self._add_file(response, extension.file)  # type: ignore[attr-defined]
                case "all_extension_numbers_of_type":
                    message = pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
                    numbers = response.all_extension_numbers_response
                    numbers.base_type_name = message.full_name
                    numbers.extension_number.extend(
                        extension.number for extension in pool.FindAllExtensions(message)
                    )
                case _:
                    response.error_response.error_code = Status.INVALID_ARGUMENT.value
                    response.error_response.error_message = "no request"
        except KeyError:
            response.error_response.error_code = Status.NOT_FOUND.value
            response.error_response.error_message = "not found"

    def _add_file(self, response: Any, file: FileDescriptor) -> None:
        """The file, and everything it imports: clients ask for fewer round trips."""
        files: dict[str, FileDescriptor] = {}
        pending = [file]
        while pending:
            file = pending.pop(0)
            if file.name not in files:
                files[file.name] = file
                pending.extend(file.dependencies)
        for found in files.values():
            proto = FileDescriptorProto()
            found.CopyToProto(proto)
            response.file_descriptor_response.file_descriptor_proto.append(
                proto.SerializeToString()
            )

    def __mapping__(self) -> Mapping[str, Handler]:
        """As a grpclib service."""
        path = f"/{self._package}.ServerReflection/ServerReflectionInfo"
        types = (self._request, self._response)
        return {path: Handler(self.info, Cardinality.STREAM_STREAM, *types)}
