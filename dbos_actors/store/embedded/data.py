"""The data directory: who may read it, who owns it, and which Valkey runs on it.

Its files hold everything that clients sent, so nobody but the user of the server may read them.
What is made here is private from the start, Valkey's files too (`launcher`). A directory that
exists already and is open to others is tightened if it is ours and holds nothing but our files: a
plain ``mkdir`` makes it so, and to refuse would only have the operator type the ``chmod``. It is
refused if it belongs to somebody else and everybody has access, or if it holds other files: those
were perhaps meant to be read, and it may be a directory that everybody needs, such as ``/tmp``.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from dbos_actors.errors import ConfigurationError, OwnedElsewhereError
from dbos_actors.loggers import get_logger
from dbos_actors.store.embedded.processes import (
    POLL_S,
    EmbeddedStoreError,
    ask,
    send_signal,
    start_time,
)
from dbos_actors.store.embedded.sockets import remove_recorded

# An orderly end writes and syncs what is left of the file: seconds on a slow disk, not more.
SHUTDOWN_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 10.0
_LOG_SIZE_BYTES = 4 << 20
# Reserved for the record from the start, so that writing it takes no space of a full disk. The
# longest one is a socket's path of 104 bytes in JSON, where a byte may take six, and two numbers.
_RECORD_BYTES = 1024

_SERVER_LOCK = "server.lock"
_VALKEY_LOCK = "valkey.lock"
_RECORD = "valkey.json"
_LOG = "valkey.log"
_AOF = "appendonlydir"
_OURS = (_SERVER_LOCK, _VALKEY_LOCK, _RECORD, _LOG, f"{_LOG}.1", _AOF)
_HALF_WRITTEN = ("temp-*.aof", "temp-*.rdb")
# In the root of a file system, and closed to others by itself.
_NOBODYS = ("lost+found",)

_log = get_logger(__name__)


# ----------------------------------------------------------------- preparation


def prepared(data_dir: Path) -> Path:
    """``data_dir``, made, private and absolute.

    Raises `ConfigurationError` if it cannot be used or must not be.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_dir = data_dir.resolve()
        _make_private(data_dir)
        descriptor = os.open(data_dir / _SERVER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"DBOS_DATA_DIR={data_dir} cannot be used: {error.strerror}"
        ) from error
    return data_dir


def _make_private(data_dir: Path) -> None:
    found = data_dir.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        if mode & 0o007:
            raise ConfigurationError(
                f"DBOS_DATA_DIR={data_dir} belongs to another user and is open to everybody "
                f"(mode {mode:04o}): use a directory inside it, which is made private"
            )
    elif mode & 0o077:
        names = {path.name for path in data_dir.iterdir() if not _is_ours(path)}
        strangers = names.difference(_NOBODYS)
        if strangers:
            raise ConfigurationError(
                f"DBOS_DATA_DIR={data_dir} is open to others (mode {mode:04o}) and holds other "
                f"files, such as {min(strangers)}: use a directory of its own, or chmod 700 it"
            )
        data_dir.chmod(0o700)
        _log.warning("data_dir_made_private", data_dir=str(data_dir), mode_before=f"{mode:04o}")
    for path in (*data_dir.iterdir(), *data_dir.glob(f"{_AOF}/*")):
        if not path.is_symlink() and (path.parent != data_dir or _is_ours(path)):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                path.chmod(mode & 0o700)


def _is_ours(path: Path) -> bool:
    return path.name in _OURS or any(path.match(pattern) for pattern in _HALF_WRITTEN)


def tidy(data_dir: Path) -> None:
    """Removes what a killed Valkey left half-written, and a log that has grown large."""
    for pattern in _HALF_WRITTEN:
        for path in data_dir.glob(pattern):
            path.unlink(missing_ok=True)
    log = log_of(data_dir)
    if log.exists() and log.stat().st_size > _LOG_SIZE_BYTES:
        log.replace(log.with_suffix(".log.1"))


def log_of(data_dir: Path) -> Path:
    """Valkey's own log."""
    return data_dir / _LOG


# ---------------------------------------------------------------------- record


@dataclass(frozen=True, slots=True)
class Record:
    """Which process runs on the data, as written down for the next server."""

    process_id: int
    start_time: str | None
    socket: str

    def write(self, data_dir: Path) -> None:
        """Writes it over the one before, in place: that needs no space (`reserve_record`).

        Raises `OSError`.
        """
        text = json.dumps(asdict(self)).encode().ljust(_RECORD_BYTES)
        descriptor = os.open(data_dir / _RECORD, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, text, 0)
        finally:
            os.close(descriptor)

    @classmethod
    def read(cls, data_dir: Path) -> Record | None:
        """What is written there; None if it is missing or not ours."""
        try:
            fields = json.loads((data_dir / _RECORD).read_text(encoding="utf-8"))
            record = cls(fields["process_id"], fields["start_time"], fields["socket"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return record if isinstance(record.process_id, int) and record.process_id > 1 else None

    def is_running(self) -> bool:
        """Whether that very process, not another one under its id, is there."""
        return self.start_time is not None and start_time(self.process_id) == self.start_time

    async def answers_for(self, data_dir: Path) -> bool:
        """Whether a Valkey at the socket says that it is this process on ``data_dir``."""
        try:
            server = await ask(Path(self.socket), "INFO", "server")
            directory = await ask(Path(self.socket), "CONFIG", "GET", "dir")
        except (OSError, trio.BrokenResourceError):
            return False
        return (
            isinstance(server, bytes)
            and f"process_id:{self.process_id}".encode() in server.split()
            and directory == [b"dir", os.fsencode(data_dir)]
        )


def reserve_record(data_dir: Path) -> None:
    """Takes the record's space while there is some. Raises `EmbeddedStoreError`."""
    try:
        path = data_dir / _RECORD
        if not path.exists() or path.stat().st_size < _RECORD_BYTES:
            Record(0, None, "").write(data_dir)
    except OSError as error:
        raise EmbeddedStoreError(f"cannot write to {data_dir}: {error.strerror}") from error


def remove_record(data_dir: Path) -> None:
    """Nobody runs on the data any more."""
    (data_dir / _RECORD).unlink(missing_ok=True)


# ----------------------------------------------------------------------- locks


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on ``path``, or None if another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """Keeps every other server out of ``data_dir``. Raises `OwnedElsewhereError`."""
    path = data_dir / _SERVER_LOCK
    descriptor = _locked(path)
    if descriptor is None:
        holder = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
        raise OwnedElsewhereError(f"process {holder} on this machine, which holds {path}")
    try:
        # Only for people: a full disk may leave it out.
        with suppress(OSError):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


async def lock_data(data_dir: Path) -> int:
    """The descriptor of ``valkey.lock``, after any orphan on the data has ended.

    Raises `EmbeddedStoreError` if one does not end, or cannot be verified as ours to end.
    """
    path = data_dir / _VALKEY_LOCK
    record = Record.read(data_dir)
    descriptor = _locked(path)
    if descriptor is None:
        descriptor = await _lock_after_orphan(path, record)
    if record is not None:
        remove_recorded(Path(record.socket))
    return descriptor


async def _lock_after_orphan(path: Path, record: Record | None) -> int:
    if record is not None:
        answers = await record.answers_for(path.parent)
        verified = answers or record.is_running()
        _log.warning("embedded_store_orphaned", process_id=record.process_id, verified=verified)
        if answers:
            # No answer is the expected one.
            with suppress(OSError, trio.BrokenResourceError):
                await ask(Path(record.socket), "SHUTDOWN")
        elif verified:
            send_signal(record.process_id, signal.SIGTERM)
    # Even one that cannot be verified may be about to end: the kernel told it to.
    descriptor = await wait_locked(path, SHUTDOWN_TIMEOUT_S)
    if descriptor is None and record is not None and record.is_running():
        send_signal(record.process_id, signal.SIGKILL)
        descriptor = await wait_locked(path, KILL_TIMEOUT_S)
    if descriptor is None:
        raise EmbeddedStoreError(
            f"a Valkey still runs on {path.parent} and cannot be identified: end it and start again"
        )
    return descriptor


async def wait_locked(path: Path, timeout_s: float) -> int | None:
    """A descriptor that holds the lock, once it is free; None after ``timeout_s``."""
    with trio.move_on_after(timeout_s):
        while True:
            descriptor = _locked(path)
            if descriptor is not None:
                return descriptor
            await trio.sleep(POLL_S)
    return None
