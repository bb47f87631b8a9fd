"""The option ``--result FILE`` of long commands: what they print is kept in a file as well.

`docs/reliability.md` links to such files in ``tests/results``. A file begins with the command, the
time, the commit and the machine, so that a reader knows what was run.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]


def add_result_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the option ``--result FILE``; the parsed value is a Path or None."""
    parser.add_argument(
        "--result", type=Path, metavar="FILE", help="write what is printed to this file, too"
    )


@contextmanager
def kept_in(path: Path | None, command: str) -> Iterator[None]:
    """Within the block, what is printed on stdout also goes to ``path``, unless that is None.

    The file is replaced. Each line reaches it when it is printed, so a run that is interrupted
    leaves what it had found. ``command`` is the command line to repeat, for the head of the file.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", buffering=1) as file:
        file.write(_head(command))
        with redirect_stdout(_Both(sys.stdout, file)):
            yield


def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """The command as one types it, without the option that names the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--result" in given:
        at = given.index("--result")
        del given[at : at + 2]
    kept = [argument for argument in given if not argument.startswith("--result=")]
    return " ".join(["python -m", module, *kept])


class _Both(io.TextIOBase):
    """Writes to two streams."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._first = first
        self._second = second

    def write(self, text: str, /) -> int:
        self._second.write(text)
        return self._first.write(text)

    def flush(self) -> None:
        self._first.flush()
        self._second.flush()


def _head(command: str) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return (
        f"# `{command}`\n\n{now} UTC, commit {_commit()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores.\n\n"
    )


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            check=True,
            cwd=ROOT,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive, or no git
        return "unknown"
    return found.stdout.strip()
