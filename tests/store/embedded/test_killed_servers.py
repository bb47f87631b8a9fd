"""What a server that was killed leaves behind: its Valkey, its folder, and the next start."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbos_actors.store.embedded import (
    EmbeddedStoreError,
    data,
    open_embedded,
    processes,
    sockets,
)
from tests.store.embedded.outliving import (
    ask,
    eventually,
    is_gone,
    killed_server,
    names_in,
)

# A launcher that does not tie the program to its parent, as on systems that cannot.
UNTIED_LAUNCHER = "import os, sys; os.execv(sys.argv[2], sys.argv[2:])"


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    path = tmp_path / "untied.py"
    path.write_text(UNTIED_LAUNCHER)
    return path


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
