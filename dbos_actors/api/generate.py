"""Regenerates everything in this package that comes from ``protos/dbos.proto``.

``python -m dbos_actors.api.generate`` writes the files; with ``--check`` it
writes nothing and exits 1 if one of them is out of date.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

API = Path(__file__).resolve().parent
PROTOS = API.parent.parent / "protos"
GENERATED = ("descriptors.binpb", "messages.pyi", "sdk/__init__.py", "sdk/dbos/__init__.py")


def generate(into: Path) -> None:
    """Writes the `GENERATED` files below ``into``.

    Raises `subprocess.CalledProcessError` when protoc or its plugin fails.
    """
    sdk = into / "sdk"
    sdk.mkdir(parents=True, exist_ok=True)
    plugin = Path(sys.executable).parent / "protoc-gen-python_betterproto"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTOS}",
            f"--descriptor_set_out={into / 'descriptors.binpb'}",
            f"--pyi_out={into}",
            f"--plugin=protoc-gen-python_betterproto={plugin}",
            f"--python_betterproto_out={sdk}",
            "dbos.proto",
        ],
        check=True,
        capture_output=True,
    )
    (into / "dbos_pb2.pyi").rename(into / "messages.pyi")


def outdated(fresh: Path) -> list[str]:
    """The `GENERATED` files that differ from those below ``fresh``."""
    return [
        name
        for name in GENERATED
        if not (API / name).exists() or (API / name).read_bytes() != (fresh / name).read_bytes()
    ]


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        stale = outdated(fresh)
        if "--check" in arguments:
            for name in stale:
                print(f"out of date: dbos_actors/api/{name}", file=sys.stderr)
            return 1 if stale else 0
        for name in stale:
            (API / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fresh / name, API / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
