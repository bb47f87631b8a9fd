"""The contract's messages as protobuf (upb) classes, for the server.

Built from ``descriptors.binpb`` in a descriptor pool of their own, so that a
client's ``dbos_pb2`` of any generation can be imported in the same process.
``messages.pyi`` gives their types.
"""

from __future__ import annotations

from importlib.resources import files

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_files = FileDescriptorSet.FromString(files(__package__).joinpath("descriptors.binpb").read_bytes())

_pool = DescriptorPool()
for _file in _files.file:
    _pool.Add(_file)

DESCRIPTOR = _pool.FindFileByName("dbos.proto")
"""The contract's file descriptor; ``services_by_name["DBOS"]`` has the methods."""

globals().update(
    {
        name: GetMessageClass(descriptor)
        for name, descriptor in DESCRIPTOR.message_types_by_name.items()
    }
)
