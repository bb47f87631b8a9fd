"""Running each suite: how many of its cases pass, and which fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from tests.conformance import tools

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent

SUITE_S_MAX: Final = 480.0
"""No suite takes a quarter of that on two cores."""

H2SPEC_FAILURES: Final = {
    "3.5 Sends invalid connection preface": (
        "the port serves HTTP/1.1 too, which answers what is no preface of HTTP/2 with 400"
    ),
    "5.3.1 Sends PRIORITY frame that depend on itself": (
        "RFC 9113 has dropped the priorities of RFC 7540: a PRIORITY frame may be ignored"
    ),
    "6.9.1 Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1"
    " on a stream": (
        "the RFC leaves the choice between the stream and the connection; nghttp2 ends the"
        " connection (FLOW_CONTROL_ERROR), h2spec wants the stream to end"
    ),
}
"""The cases of h2spec that fail, and why they may."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one suite."""

    passed: int
    total: int
    failures: tuple[str, ...] = ()
    """What should have passed, or should not have, in the suite's words."""

    @property
    def is_good(self) -> bool:
        """Whether everything is as it should be."""
        return self.total > 0 and not self.failures


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite, and what it is run against."""

    key: str
    """Its name on the command line."""
    title: str
    subject: str
    run: Callable[[], Outcome]
    needs_go: bool = True


def _environment() -> dict[str, str]:
    path = [str(ROOT), str(tools.conformance_messages())]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def run_conformance(mode: str, configuration: str, program: str) -> Outcome:
    """The suite of connectrpc in a mode (client, server), against a program beside this module."""
    command = [
        str(tools.conformance_program()),
        *("--mode", mode, "--conf", str(HERE / configuration), "--"),
        *(sys.executable, str(HERE / program)),
    ]
    done = subprocess.run(
        command,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=SUITE_S_MAX,
        check=False,
    )
    return conformance_outcome(done.stdout + done.stderr)


def conformance_outcome(output: str) -> Outcome:
    """What connectrpc's suite has printed."""
    found = re.search(r"^(\d+) passed, (\d+) failed", output, re.MULTILINE)
    if found is None:
        return Outcome(0, 0, (output[-2_000:],))
    passed, failed = map(int, found.groups())
    failures = re.findall(r"^FAILED: (.+(?:\n\t.+)*)", output, re.MULTILINE)
    if failed and not failures:
        failures = [output[-2_000:]]
    return Outcome(passed, passed + failed, tuple(failures))


def run_h2spec() -> Outcome:
    """All cases of h2spec, the strict ones too."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        server = subprocess.Popen(
            [sys.executable, str(HERE / "h2spec_server.py")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            subprocess.run(
                [str(tools.h2spec_program()), "-p", port, "-S", "-j", str(report)],
                stdout=subprocess.DEVNULL,
                timeout=SUITE_S_MAX,
                check=False,
            )
        finally:
            server.kill()
            server.communicate()
        return h2spec_outcome(report.read_text())


def h2spec_outcome(report: str) -> Outcome:
    """What h2spec's JUnit report says."""
    cases = ET.fromstring(report).findall(".//testcase")  # noqa: S314 - h2spec's own
    failed = {
        f"{case.get('package', '').rpartition('/')[2]} {case.get('classname')}"
        for case in cases
        if len(case)
    }
    unexpected = [f"failed or skipped: {name}" for name in sorted(failed - H2SPEC_FAILURES.keys())]
    unexpected += [
        f"passes, but is listed: {name}" for name in sorted(H2SPEC_FAILURES.keys() - failed)
    ]
    return Outcome(len(cases) - len(failed), len(cases), tuple(unexpected))


def run_pytest(path: str) -> Outcome:
    """The tests of a module, as cases."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SUITE_S_MAX,
            check=False,
        )
        if not report.exists():
            return Outcome(0, 0, (done.stdout[-2_000:] + done.stderr[-2_000:],))
        cases = ET.parse(report).findall(".//testcase")  # noqa: S314 - pytest's own
    failed = tuple(str(case.get("name")) for case in cases if len(case))
    return Outcome(len(cases) - len(failed), len(cases), failed)


_CONFORMANCE: Final = f"connectrpc's conformance suite {tools.CONFORMANCE_VERSION}"
_INTEROP: Final = "interoperability cases of grpc.io and more"

SUITES: Final = (
    Suite(
        "server",
        f"{_CONFORMANCE}, gRPC",
        "server",
        lambda: run_conformance("server", "grpc.yaml", "conformance_server.py"),
    ),
    Suite(
        "client",
        f"{_CONFORMANCE}, gRPC",
        "channel",
        lambda: run_conformance("client", "grpc.yaml", "conformance_client.py"),
    ),
    Suite(
        "h2spec",
        f"h2spec {tools.H2SPEC_VERSION.partition('+')[0]}, strict",
        "server",
        run_h2spec,
    ),
    Suite(
        "interop-server",
        f"{_INTEROP}, client of gRPC core",
        "server",
        lambda: run_pytest("tests/rpc/server/test_interop.py"),
        needs_go=False,
    ),
    Suite(
        "interop-client",
        f"{_INTEROP}, server of gRPC core",
        "channel",
        lambda: run_pytest("tests/rpc/client/test_interop.py"),
        needs_go=False,
    ),
)
