"""Regenerates everything that comes from ``.proto`` files.

``python -m dbos_actors.api.generate`` writes the code of this package and the tables in
``docs/api.md``, both from ``protos/dbos.proto``, and the descriptors of gRPC's own services. With
``--check`` it writes nothing and exits 1 if one of these files is out of date.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from dbos_actors.api.comments import comments_of, with_method_docstrings, with_tables

ROOT = Path(__file__).resolve().parent.parent.parent
PROTOS = ROOT / "protos"
CONTRACT = "dbos.proto"

SCHEMAS = ROOT / "dbos_actors" / "rpc" / "wire" / "schemas"
GRPC_SERVICES = (
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
)

GENERATED = (
    "dbos_actors/api/descriptors.binpb",
    "dbos_actors/api/messages.pyi",
    "dbos_actors/api/sdk/__init__.py",
    "dbos_actors/api/sdk/dbos/__init__.py",
    "dbos_actors/rpc/wire/schemas/descriptors.binpb",
    "docs/api.md",
)


def generate(into: Path) -> None:
    """Writes the `GENERATED` files below ``into``.

    Raises `subprocess.CalledProcessError` when protoc or its plugin fails, and
    `dbos_actors.api.comments.UndocumentedError`.
    """
    api, docs = into / "dbos_actors" / "api", into / "docs"
    sdk = api / "sdk"
    sdk.mkdir(parents=True)
    docs.mkdir()
    descriptors = f"--descriptor_set_out={api / 'descriptors.binpb'}"
    _protoc(PROTOS, descriptors, f"--pyi_out={api}", CONTRACT)
    (api / "dbos_pb2.pyi").rename(api / "messages.pyi")
    _generate_sdk(sdk)
    schemas = into / SCHEMAS.relative_to(ROOT)
    schemas.mkdir(parents=True)
    descriptors = f"--descriptor_set_out={schemas / 'descriptors.binpb'}"
    _protoc(SCHEMAS, "--include_imports", descriptors, *GRPC_SERVICES)

    file = _described()
    comments = comments_of(file)
    stubs = sdk / "dbos" / "__init__.py"
    code = stubs.read_text(encoding="utf-8")
    stubs.write_text(with_method_docstrings(code, file, comments), encoding="utf-8")
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    (docs / "api.md").write_text(with_tables(page, file, comments), encoding="utf-8")


def _generate_sdk(sdk: Path) -> None:
    plugin = Path(sys.executable).parent / "protoc-gen-python_betterproto"
    with tempfile.TemporaryDirectory() as directory:
        # The plugin takes the space behind the slashes for a part of the comment.
        source = (PROTOS / CONTRACT).read_text(encoding="utf-8")
        unspaced = re.sub(r"^( *//) ", r"\1", source, flags=re.MULTILINE)
        Path(directory, CONTRACT).write_text(unspaced, encoding="utf-8")
        _protoc(
            Path(directory),
            f"--plugin=protoc-gen-python_betterproto={plugin}",
            f"--python_betterproto_out={sdk}",
            CONTRACT,
        )


def _described() -> FileDescriptorProto:
    """The contract's descriptor with its comments."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "descriptors")
        _protoc(PROTOS, "--include_source_info", f"--descriptor_set_out={path}", CONTRACT)
        (file,) = FileDescriptorSet.FromString(path.read_bytes()).file
    return file


def _protoc(protos: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={protos}", *arguments],
        check=True,
        capture_output=True,
    )


def outdated(fresh: Path) -> list[str]:
    """The `GENERATED` files that differ from those below ``fresh``."""
    return [
        name
        for name in GENERATED
        if not (ROOT / name).exists() or (ROOT / name).read_bytes() != (fresh / name).read_bytes()
    ]


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        stale = outdated(fresh)
        if "--check" in arguments:
            for name in stale:
                print(f"out of date: {name}", file=sys.stderr)
            return 1 if stale else 0
        for name in stale:
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fresh / name, ROOT / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
