"""The suites that others wrote: where they are, and how they get there.

They are Go programs, installed by `go install` below ``$SUITES_HOME``, by default
``~/.cache/dbos-actors/suites``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

CONFORMANCE: Final = "connectrpc.com/conformance"
CONFORMANCE_VERSION: Final = "v1.0.7"

H2SPEC: Final = "github.com/summerwind/h2spec"
H2SPEC_VERSION: Final = "v2.2.1+incompatible"
"""The newest that Go's module proxy has."""

_MESSAGES: Final = ("config", "service", "server_compat", "client_compat")

_HOME: Final = Path(
    os.environ.get("SUITES_HOME") or Path.home() / ".cache" / "dbos-actors" / "suites"
)


def has_go() -> bool:
    """Whether Go programs can be installed."""
    return shutil.which("go") is not None


def conformance_program() -> Path:
    """The conformance suite of connectrpc."""
    return _installed(CONFORMANCE, "cmd/connectconformance", CONFORMANCE_VERSION)


def h2spec_program() -> Path:
    """h2spec."""
    return _installed(H2SPEC, "cmd/h2spec", H2SPEC_VERSION)


def _installed(module: str, package: str, version: str) -> Path:
    folder = _HOME / version
    program = folder / package.rpartition("/")[2]
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["go", "install", f"{module}/{package}@{version}"],
            env={**os.environ, "GOBIN": str(folder)},
            check=True,
        )
    return program


def conformance_messages() -> Path:
    """A folder with the classes of connectrpc's messages, generated if need be."""
    folder = _HOME / CONFORMANCE_VERSION / "messages"
    if not folder.exists():
        download = subprocess.run(
            ["go", "mod", "download", "-json", f"{CONFORMANCE}@{CONFORMANCE_VERSION}"],
            capture_output=True,
            check=True,
        )
        protos = Path(json.loads(download.stdout)["Dir"]) / "proto"
        new = folder.with_name(f"messages.{os.getpid()}")
        new.mkdir(parents=True)
        files = [f"{protos}/connectrpc/conformance/v1/{name}.proto" for name in _MESSAGES]
        subprocess.run(
            [
                *(sys.executable, "-m", "grpc_tools.protoc"),
                *(f"-I{protos}", f"--python_out={new}", *files),
            ],
            check=True,
        )
        new.rename(folder)
    return folder
