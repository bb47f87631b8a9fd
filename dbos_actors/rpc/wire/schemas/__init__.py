"""The messages of gRPC's own services, in a descriptor pool of their own.

The ``.proto`` files are below this folder. ``descriptors.binpb`` is made from them by
``python -m dbos_actors.api.generate``.

They are in no generated module, because every package that ships one registers the same names in
protobuf's default pool, and the second one to be imported fails there. A process that serves must
be able to import any client's generated code.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_files = {
    file.name: file
    for file in FileDescriptorSet.FromString(
        files(__package__).joinpath("descriptors.binpb").read_bytes()
    ).file
}

HEALTH_FILE = _files["grpc/health/v1/health.proto"]
"""The descriptor of the health service."""

REFLECTION_FILES = {
    version: _files[f"grpc/reflection/{version}/reflection.proto"] for version in ("v1", "v1alpha")
}
"""The descriptor of the reflection service in each of its versions."""

_pool = DescriptorPool()
for _file in _files.values():
    _pool.Add(_file)


def message_class(full_name: str) -> Any:
    """The class of one of the messages, such as ``google.rpc.Status``."""
    return GetMessageClass(_pool.FindMessageTypeByName(full_name))
