"""The private Valkey as a child process: started, supervised, stopped.

One Valkey runs on the data at a time. Whatever goes wrong once a process is forked, it is this
process that is waited for: a second one is launched only after the first one has ended.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import trio

from dbos_actors.backoff import Backoff, BackoffPolicy
from dbos_actors.clock import Clock, SystemClock
from dbos_actors.loggers import get_logger
from dbos_actors.store.embedded import launcher
from dbos_actors.store.embedded.binary import valkey_binary
from dbos_actors.store.embedded.data import (
    SHUTDOWN_TIMEOUT_S,
    Record,
    lock_data,
    log_of,
    owned,
    prepared,
    remove_record,
    reserve_record,
    tidy,
)
from dbos_actors.store.embedded.processes import (
    POLL_S,
    EmbeddedStoreError,
    ask,
    start_time,
    wait_reaped,
)
from dbos_actors.store.embedded.sockets import SocketFolder

Durability = Literal["replay", "fsync"]

# Valkey binds its socket within milliseconds and loads its data only then.
_BIND_TIMEOUT_S = 30.0
# What stopping may take though the time for it is over: an orderly end takes some 50 ms.
_STOP_MIN_S = 0.2
# A record that could not be written is tried again so often.
_RECORD_RETRY_S = 1.0
# A Valkey that lived this long is restarted at once; else after a delay that doubles.
_STABLE_S = 10.0
_RESTARTS = BackoffPolicy(at_once=True, first_s=0.1, factor=2.0, max_s=5.0, jitter=0.0)
_LOADING_REPORT_S = 10.0
_LOG_TAIL_BYTES = 2048

_log = get_logger(__name__)


class EmbeddedStore:
    """A running private Valkey. Made by `open_embedded`."""

    def __init__(
        self,
        *,
        binary: Path,
        data_dir: Path,
        folder: SocketFolder,
        lock: int,
        durability: Durability,
        clock: Clock,
    ) -> None:
        self.data_dir = data_dir
        self.socket = folder.socket
        self.restarts = 0
        """How often Valkey died and was started again."""
        self._binary = binary
        # The descriptors by which the kernel knows that a Valkey lives.
        self._locks = (lock, folder.lock)
        self._durability = durability
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._is_recorded = False

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
            "logfile": str(log_of(self.data_dir)),
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

        Raises `OSError` only if there is no new process. Once there is one nothing is raised: it
        would be taken for none, and another one would be launched beside it on the same data.
        """
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError(f"Valkey {self._process.pid} still runs")
        tidy(self.data_dir)
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
            pass_fds=self._locks,
            # A session of its own: Ctrl-C at the terminal is for the server, which stops it last.
            start_new_session=True,
        )
        self._record(self._process)

    def _record(self, process: subprocess.Popen[bytes]) -> None:
        """Notes the launch in the data directory and in the log. Raises nothing."""
        try:
            Record(process.pid, start_time(process.pid), str(self.socket)).write(self.data_dir)
            self._is_recorded = True
            _log.info("embedded_store_started", process_id=process.pid, data_dir=str(self.data_dir))
        except Exception as error:  # noqa: BLE001 - see `_launch`
            self._is_recorded = False
            with suppress(Exception):
                _log.error("embedded_store_not_recorded", process_id=process.pid, error=str(error))

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
                reply = await ask(self.socket, "PING")
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
            await trio.sleep(POLL_S)

    async def supervise(self) -> None:
        """Starts Valkey again whenever it ends. Runs until cancelled."""
        backoff = Backoff(_RESTARTS)
        while True:
            process = self._process
            assert process is not None  # started before it is supervised
            began_s = self._clock.monotonic_s()
            status = await self._wait_ended_recorded(process)
            stable = self._clock.monotonic_s() - began_s >= _STABLE_S
            _log.error("embedded_store_ended", process_id=process.pid, status=status)
            if stable:
                backoff.reset()
            while True:
                await trio.sleep(backoff.next_s())
                try:
                    self._launch()
                except OSError as error:
                    _log.error("embedded_store_not_started", error=str(error))
                else:
                    break
            self.restarts += 1

    async def _wait_ended_recorded(self, process: subprocess.Popen[bytes]) -> int:
        """`_wait_ended`, and meanwhile tries again to record a process that is not."""
        while not self._is_recorded:
            with trio.move_on_after(_RECORD_RETRY_S):
                return await self._wait_ended(process)
            self._record(process)
        return await self._wait_ended(process)

    async def stop(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> bool:
        """Shuts Valkey down, its data written; whether it has ended within ``timeout_s``.

        A Valkey that hangs is left alone then, told to end. To kill it could lose what it
        acknowledged and has not written to its file yet, up to two seconds of writes. It keeps its
        lock, so that nobody else touches the data, and ends when it can. The next server on the
        data waits for that and kills it only after `SHUTDOWN_TIMEOUT_S`.

        Not cancellable.
        """
        process = self._process
        if process is None:
            return True
        deadline_s = trio.current_time() + timeout_s
        with trio.CancelScope(shield=True):
            # Gone without an answer, as it should be, or never there: either way told below.
            with suppress(OSError, trio.BrokenResourceError):
                reply = await ask(self.socket, "SHUTDOWN", timeout_s=timeout_s / 2)
                _log.error("embedded_store_not_shut_down", error=str(reply))
            if not await wait_reaped(process, POLL_S):
                process.send_signal(signal.SIGTERM)
            has_ended = await wait_reaped(process, max(0.0, deadline_s - trio.current_time()))
            if has_ended:
                remove_record(self.data_dir)
                _log.info("embedded_store_stopped", status=process.returncode)
            else:
                _log.error("embedded_store_hangs", process_id=process.pid, waited_s=timeout_s)
        return has_ended

    def _last_words(self) -> str:
        try:
            with log_of(self.data_dir).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError as error:
            return str(error)
        return lines[-1].strip() if lines else "no word in its log"


@asynccontextmanager
async def open_embedded(
    data_dir: Path,
    *,
    durability: Durability = "replay",
    clock: Clock | None = None,
    stop_by: Callable[[], float] | None = None,
) -> AsyncIterator[EmbeddedStore]:
    """A private Valkey on ``data_dir``, running for the length of the block.

    ``durability`` "replay" syncs its file each second, "fsync" before each answer. It answers
    when the block is entered, is restarted whenever it dies, and is shut down, with its data on
    disk, when the block is left or cancelled. ``stop_by`` is asked then until when that may take,
    on `trio.current_time`'s scale; see `EmbeddedStore.stop` for a Valkey that takes longer. An
    error of the block comes out in an `ExceptionGroup`, as from a nursery.

    Raises `ConfigurationError` if the package or the directory cannot be used,
    `OwnedElsewhereError` if another server uses the directory, and `EmbeddedStoreError` if
    Valkey does not start on it.
    """
    binary = valkey_binary()
    data_dir = prepared(data_dir)
    with ExitStack() as stack:
        stack.enter_context(owned(data_dir))
        lock = await lock_data(data_dir)
        stack.callback(os.close, lock)
        reserve_record(data_dir)
        folder = _socket_folder()
        has_ended = True
        stack.callback(lambda: folder.close(is_used=not has_ended))
        store = EmbeddedStore(
            binary=binary,
            data_dir=data_dir,
            folder=folder,
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
            deadline_s = stop_by() if stop_by is not None else math.inf
            left_s = max(deadline_s - trio.current_time(), _STOP_MIN_S)
            has_ended = await store.stop(min(left_s, SHUTDOWN_TIMEOUT_S))


def _socket_folder() -> SocketFolder:
    try:
        return SocketFolder()
    except OSError as error:
        raise EmbeddedStoreError(
            f"cannot make a folder for the socket in the temporary directory: {error}"
        ) from error
