"""The contract as each generation of clients has it, as message classes and method names.

Generations: ``a`` knows the first twelve methods, ``b`` all fifteen of the original
service, ``today`` is ``protos/dbos.proto``. Each is compiled by protoc and kept in a descriptor
pool of its own, as it would be in a client's own process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_ROOT = Path(__file__).parents[2]

PROTO_OF = {
    "a": _ROOT / "tests/generated_clients/protos/gen_a.proto",
    "b": _ROOT / "tests/generated_clients/protos/gen_b.proto",
    "today": _ROOT / "protos/dbos.proto",
}


class Contract:
    """One generation's messages by name, and its methods."""

    def __init__(self, descriptors: FileDescriptorSet) -> None:
        pool = DescriptorPool()
        for file in descriptors.file:
            pool.Add(file)
        self._file = pool.FindFileByName(descriptors.file[-1].name)
        self.methods = [method.name for method in self._file.services_by_name["DBOS"].methods]

    def message(self, name: str) -> Any:
        """The class of a message."""
        return GetMessageClass(self._file.message_types_by_name[name])


def compile_proto(proto: Path, *outputs: str) -> None:
    """Run protoc on one file with these output options."""
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto.parent}", *outputs, proto.name],
        check=True,
    )


@cache
def contract(generation: str) -> Contract:
    """The contract of a generation, compiled once per test run."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "descriptors"
        compile_proto(PROTO_OF[generation], f"--descriptor_set_out={path}")
        return Contract(FileDescriptorSet.FromString(path.read_bytes()))
