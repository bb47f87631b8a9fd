"""Builds the Go peer: messages generated from the contract, then the program.

Needs `go` and, for protoc, grpcio-tools. What is built stays in `go/build/`,
named after its inputs, so that a second run finds it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent / "go"
_PROTO = Path(__file__).parents[2] / "protos" / "dbos.proto"


class GoBuildError(Exception):
    """The Go peer could not be built."""


def _run(*command: str, cwd: Path) -> str:
    # The pinned toolchain or an error: nothing is fetched but the modules that go.sum names.
    environment = os.environ | {"GOFLAGS": "-mod=mod -buildvcs=false", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GoBuildError(f"{' '.join(command[:4])}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def build() -> Path | None:
    """The path of the program, built if need be; None without `go` on the PATH.

    Raises `GoBuildError` when `go` is there and fails.
    """
    go = shutil.which("go")
    if go is None:
        return None
    inputs = [_PROTO, *(_HERE / name for name in ("main.go", "go.mod", "go.sum"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    target = _HERE / "build" / digest
    program = target / "peer"
    if program.exists():
        return program
    source = target / "source"
    shutil.rmtree(target, ignore_errors=True)
    (source / "pb").mkdir(parents=True)
    for path in inputs[1:]:
        shutil.copy(path, source)
    _run(go, "build", "-o", str(target), "google.golang.org/protobuf/cmd/protoc-gen-go", cwd=source)
    _run(
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--plugin=protoc-gen-go={target / 'protoc-gen-go'}",
        f"--proto_path={_PROTO.parent}",
        f"--go_out={source / 'pb'}",
        "--go_opt=paths=source_relative",
        f"--go_opt=M{_PROTO.name}=dbosbench/pb",
        _PROTO.name,
        cwd=source,
    )
    _run(go, "build", "-o", str(program), ".", cwd=source)
    return program
