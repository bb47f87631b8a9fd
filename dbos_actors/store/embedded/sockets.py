"""The folder of Valkey's socket, and the folders that killed servers left behind.

An address longer than 108 bytes cannot be bound (unix(7)), and a data directory may be deep. So
the socket is in a folder of its own in the temporary directory. The folder holds a ``lock``, which
the server locks and Valkey inherits. The kernel drops the lock when both have ended, however
they ended. A folder whose lock is free is therefore left behind, and the next server of the same
user removes it, whatever data it was for.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Linux allows 108 bytes for a socket's path, other systems 104; the rest of ours takes under 30.
_BASE_BYTES_MAX = 70
_PREFIX = "dbos-"
_LOCK = "lock"
_SOCKET = "valkey.sock"


class SocketFolder:
    """A new folder for one socket, locked by this process. Raises `OSError`."""

    def __init__(self) -> None:
        base = _base()
        _remove_left_behind(base)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            lock = self.path / _LOCK
            self.lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            """The descriptor that Valkey inherits."""
            if _locks(self.lock) and lock.exists():
                return
            # Another server that starts took it for left behind, before it was locked.
            os.close(self.lock)

    @property
    def socket(self) -> Path:
        """Where Valkey listens."""
        return self.path / _SOCKET

    def close(self, *, is_used: bool) -> None:
        """Let go of the folder; removes it unless a Valkey still has its socket there."""
        if not is_used:
            _remove(self.path)
        os.close(self.lock)


def remove_recorded(socket: Path) -> None:
    """Remove the folder of a socket whose Valkey is known to have ended."""
    if socket.parent.name.startswith(_PREFIX):
        _remove(socket.parent)


def _base() -> str:
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > _BASE_BYTES_MAX:
        base = "/tmp"  # noqa: S108  # the folder itself is made unguessable and private
    return base


def _remove_left_behind(base: str) -> None:
    """Removes the folders of this user whose server and Valkey have both ended."""
    for folder in _own_folders(base):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            # No lock, so nothing says that whoever made it has ended.
            continue
        try:
            if _locks(descriptor):
                _remove(folder)
        finally:
            os.close(descriptor)


def _own_folders(base: str) -> Iterator[Path]:
    with suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            with suppress(OSError):
                if (
                    entry.name.startswith(_PREFIX)
                    and entry.is_dir(follow_symlinks=False)
                    and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                ):
                    yield Path(entry.path)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(folder: Path) -> None:
    """Removes what this module makes; a folder that holds anything else stays."""
    with suppress(OSError):
        (folder / _SOCKET).unlink(missing_ok=True)
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()
