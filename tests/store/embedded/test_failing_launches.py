"""Valkeys that cannot be noted, end or be stopped: never two of them on the same data."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from dbos_actors.store.embedded import (
    data,
    open_embedded,
    processes,
    valkey,
)
from tests.chaos.disks import NoDiskError, SmallDisk
from tests.store.embedded.outliving import (
    ask,
    eventually,
    is_gone,
)

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
