"""``check`` and ``repair`` as an operator meets them."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import redis

from dbos_actors.store import Keys
from dbos_actors.store.keys import LAYOUT_VERSION
from tests.cli.test_commands import COMMAND, end, environment, one_line, run, serving
from tests.cli.test_embedded_service import acknowledged, ids, with_client
from tests.layouts.fixture import DIRECTORY, Fixture
from tests.support.valkey import ValkeyServer

KEYS = Keys()


@pytest.fixture
def store(valkey: ValkeyServer) -> ValkeyServer:
    with valkey.client() as client:
        Fixture.read(max(DIRECTORY.glob("version-*.jsonl"))).restore(client)
    return valkey


def damage(store: ValkeyServer) -> None:
    store.execute("HSET", f"{KEYS.results}probe-1", "result-1", "garbage")
    store.execute("DEL", f"{KEYS.results_at}probe-1")


def test_check_is_silent_about_a_sound_store_and_has_status_0(store: ValkeyServer) -> None:
    result = run("check", REDIS_ADDR=store.address)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("no damage in ")
    assert result.stderr == ""


def test_damage_is_listed_and_mended_once_it_is_confirmed(store: ValkeyServer) -> None:
    damage(store)
    result = run("check", REDIS_ADDR=store.address)
    assert result.returncode == 4, result.stderr
    assert "results:probe-1 result-1: cannot be decoded (7 bytes) -- repair drops it" in (
        result.stdout
    )
    assert "results:probe-1 imported: is not in its index" in result.stdout
    for answer, status in (("n\n", 4), ("", 4), ("y\n", 0)):
        result = subprocess.run(
            [*COMMAND, "repair"],
            env=environment(REDIS_ADDR=store.address),
            input=answer,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert result.returncode == status, result.stderr
        assert "1 of them by dropping something?" in result.stdout
        assert ("nothing was changed" in result.stdout) == (status == 4)
    assert "no damage is left" in result.stdout
    assert run("check", REDIS_ADDR=store.address).returncode == 0


def test_yes_asks_nobody(store: ValkeyServer) -> None:
    damage(store)
    result = run("repair", "--yes", REDIS_ADDR=store.address)
    assert result.returncode == 0, result.stderr
    assert "-- repair drops it" in result.stdout


def test_check_works_beside_a_server_and_repair_refuses_to(store: ValkeyServer) -> None:
    with serving("--port", "0", REDIS_ADDR=store.address) as (server, _, _):
        damage(store)
        assert run("check", REDIS_ADDR=store.address).returncode == 4
        line = one_line(run("repair", "--yes", REDIS_ADDR=store.address))
        assert f"the store is owned by process {server.pid}" in line
        assert line.endswith("Stop it first")
        assert run("check", REDIS_ADDR=store.address).returncode == 4


def test_a_server_cannot_start_while_a_repair_waits_for_an_answer(store: ValkeyServer) -> None:
    damage(store)
    with subprocess.Popen(
        [*COMMAND, "repair"],
        env=environment(REDIS_ADDR=store.address),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as repair:
        assert repair.stdout is not None
        assert repair.stdin is not None
        asked = ""
        while "dropping something?" not in asked:
            character = repair.stdout.read(1)
            assert character, asked
            asked += character
        line = one_line(run("serve", "--port", "0", REDIS_ADDR=store.address))
        assert f"process {repair.pid}" in line
        assert "dbos-actors repair" in line
        repair.stdin.write("y\n")
        repair.stdin.flush()
        assert "no damage is left" in repair.stdout.read()
        assert repair.wait(60) == 0


def test_a_later_layout_is_neither_checked_nor_mended(store: ValkeyServer) -> None:
    store.execute("SET", KEYS.layout, LAYOUT_VERSION + 1)
    for command in (["check"], ["repair", "--yes"]):
        line = one_line(run(*command, REDIS_ADDR=store.address))
        assert "use a newer program" in line


def test_a_redis_that_is_not_there_is_one_line_and_status_2() -> None:
    for command in (["check"], ["repair", "--yes"]):
        line = one_line(run(*command, REDIS_ADDR="unix:///nowhere"))
        assert "cannot reach Redis at unix:///nowhere: No such file" in line


def test_both_work_on_a_data_directory(tmp_path: Path) -> None:
    options = ["--embedded", "--data-dir", str(tmp_path)]
    with serving(*options, "--port=0") as (server, address, at):
        with_client(address, lambda stub: acknowledged(stub, 1))
        with_client(address, lambda stub: acknowledged(stub, 2))
        for command in (["check"], ["repair", "--yes"]):
            assert f"process {server.pid}" in one_line(run(*command, *options))
        with redis.Redis.from_url(at) as client:
            assert client.delete(f"{KEYS.results_at}probe-1") == 1
        assert end(server, signal.SIGTERM)[0] == 0
    assert run("check", *options).returncode == 4
    result = run("repair", "--yes", *options)
    assert result.returncode == 0, result.stderr
    assert run("check", *options).returncode == 0
    with serving(*options, "--port=0") as (server, address, _):
        assert with_client(address, ids) == {"result-1", "result-2"}


def test_a_directory_without_a_store_is_named_and_left_alone(tmp_path: Path) -> None:
    for command in (["check"], ["repair", "--yes"]):
        line = one_line(run(*command, "--embedded", "--data-dir", str(tmp_path / "none")))
        assert f"DBOS_DATA_DIR={tmp_path / 'none'} holds no embedded store" in line
    assert list(tmp_path.iterdir()) == []
