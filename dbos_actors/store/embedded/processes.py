"""Questions to a Valkey at a socket, and to the system about a process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import hiredis
import trio

from dbos_actors.errors import DbosError
from dbos_actors.store.proc import PROC, state_and_start

# One question to a Valkey that may hang.
ASK_TIMEOUT_S = 5.0
POLL_S = 0.01


class EmbeddedStoreError(DbosError):
    """The embedded Valkey does not start, or an old one does not end."""


async def ask(socket: Path, *command: str, timeout_s: float | None = None) -> object:
    """One command to the Valkey at ``socket``; its reply, or a `hiredis.ReplyError`.

    ``timeout_s`` is `ASK_TIMEOUT_S` if not given. Raises `OSError` or `trio.BrokenResourceError`
    if nobody is there, or ends before it answers, or hangs.
    """
    with trio.move_on_after(ASK_TIMEOUT_S if timeout_s is None else timeout_s):
        async with await trio.open_unix_socket(str(socket)) as stream:
            await stream.send_all(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub
            reader = hiredis.Reader()
            while received := await stream.receive_some():
                reader.feed(bytes(received))
                reply: object = reader.gets()
                if reply is not False:
                    return reply
            raise ConnectionResetError(errno.ECONNRESET, "closed before the answer")
    raise TimeoutError(errno.ETIMEDOUT, "no answer")


def start_time(process_id: int) -> str | None:
    """When the process began, in the system's own terms; None if there is no such process."""
    try:
        return str(state_and_start(process_id)[1])
    except FileNotFoundError:
        if (PROC / "self" / "stat").exists():
            return None
    except (OSError, ValueError):
        return None
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(process_id)], capture_output=True, check=False, text=True
    )
    return shown.stdout.strip() or None


def send_signal(process_id: int, signal_number: signal.Signals) -> None:
    """Signal a process, if it is there."""
    with suppress(ProcessLookupError):
        os.kill(process_id, signal_number)


async def wait_reaped(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether the child ends in time. Polls: its other watcher may or may not be there."""
    with trio.move_on_after(timeout_s):
        while True:
            if process.poll() is not None:
                return True
            await trio.sleep(POLL_S)
    return False
