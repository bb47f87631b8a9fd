"""The command line as an operator meets it: processes, output, exit status."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dbos_actors.settings import descriptions
from tests.support.valkey import ValkeyServer

COMMAND = [sys.executable, "-m", "dbos_actors"]
READY = re.compile(r"ready address=(\S+) redis=(\S+)\n")


def environment(**variables: str) -> dict[str, str]:
    ours = {item.variable for item in descriptions()}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return {**inherited, **variables}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**variables),
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


@contextmanager
def serving(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server, its addresses and its Redis, once it is ready; killed if it still runs."""
    with subprocess.Popen(
        [*COMMAND, "serve", *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        try:
            match = READY.fullmatch(server.stdout.readline())
            if match is None:
                server.kill()
                pytest.fail(f"not ready: {server.stderr.read()}")
            yield server, match[1], match[2]
        finally:
            server.kill()


def end(server: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    """Status, the rest of stdout, and stderr, after a signal."""
    server.send_signal(number)
    out, err = server.communicate(timeout=60)
    return server.returncode, out, err


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr of a command that refused, without a word on stdout."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("dbos-actors: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ------------------------------------------------------------------------- settings


def test_settings_shows_every_setting() -> None:
    result = run("settings", COLUMNS="200", DBOS_DRAIN_GRACE="5m")
    assert result.returncode == 0
    for item in descriptions():
        assert item.variable in result.stdout
    assert "300.0" in result.stdout


def test_settings_hides_what_can_hold_a_password() -> None:
    result = run("settings", COLUMNS="200", REDIS_ADDR="redis://:secret@there")
    assert "secret" not in result.stdout
    assert "(set)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "problem"),
    [
        ([], {"DBOS_HEARTBEAT_TIMEOUT": "soon"}, "DBOS_HEARTBEAT_TIMEOUT=soon: must be a duration"),
        (["--port", "65536"], {}, "PORT=65536: must be less than or equal to 65535"),
        (["--listen", "nowhere"], {}, "DBOS_LISTEN=nowhere: must be HOST:PORT or unix:PATH"),
        ([], {"REDIS_ADDR": "http://:secret@there"}, "REDIS_ADDR must be host:port or one of"),
    ],
)
def test_a_bad_setting_is_one_line_and_status_2(
    arguments: Sequence[str], variables: dict[str, str], problem: str
) -> None:
    line = one_line(run("serve", *arguments, **variables))
    assert problem in line
    assert "secret" not in line


# ------------------------------------------------------------------------ embedded


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_embedded_prints_one_line_and_drains(number: signal.Signals, tmp_path: Path) -> None:
    with serving("--embedded", "--port", "0", "--data-dir", str(tmp_path)) as (server, address, at):
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=10).close()
        assert Path(at.removeprefix("unix://")).is_socket()
        status, out, err = end(server, number)
    assert (status, out) == (0, ""), err
    assert "embedded_store_stopped" in err
    assert err.index("stopping") < err.index("embedded_store_stopped")


def test_a_unix_socket_and_several_addresses_can_be_listened_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(
        "--embedded",
        "--listen=127.0.0.1:0",
        f"--listen=unix:{path}",
        DBOS_DATA_DIR=str(tmp_path / "data"),
    ) as (server, addresses, _):
        tcp, unix = addresses.split(",")
        assert tcp.startswith("127.0.0.1:")
        assert unix == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        status, _, err = end(server, signal.SIGTERM)
    assert status == 0, err
    assert not path.exists()


def test_a_second_server_on_the_data_directory_is_refused(tmp_path: Path) -> None:
    data_dir = ["--embedded", "--port", "0", "--data-dir", str(tmp_path)]
    with serving(*data_dir) as (server, _, _):
        line = one_line(run("serve", *data_dir))
        assert f"process {server.pid}" in line
        assert str(tmp_path) in line
        assert end(server, signal.SIGTERM)[0] == 0


def test_an_address_in_use_is_one_line_and_status_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = one_line(run("serve", "--embedded", "--port", port, "--data-dir", str(tmp_path)))
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in line


def test_logs_can_be_json(tmp_path: Path) -> None:
    with serving(
        "--embedded", "--port", "0", DBOS_DATA_DIR=str(tmp_path), DBOS_LOG_FORMAT="json"
    ) as (server, _, _):
        status, _, err = end(server, signal.SIGTERM)
    assert status == 0
    assert all(line.startswith("{") for line in err.splitlines()), err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has one")
def test_a_log_on_a_full_disk_does_not_end_the_server(tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(
            [*COMMAND, "serve", "--embedded", "--port", "0", "--data-dir", str(tmp_path)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        try:
            assert READY.fullmatch(server.stdout.readline())
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()


def test_a_misspelt_variable_is_warned_about(tmp_path: Path) -> None:
    with serving(
        "--embedded", "--port", "0", DBOS_DATA_DIR=str(tmp_path), DBOS_HEARTBEAT_TIMOUT="5"
    ) as (server, _, _):
        _, _, err = end(server, signal.SIGTERM)
    assert re.search("unknown_setting.*DBOS_HEARTBEAT_TIMOUT.*DBOS_HEARTBEAT_TIMEOUT", err)


# --------------------------------------------------------------------------- Redis


def test_an_unreachable_redis_is_one_line_and_status_2() -> None:
    address = f"127.0.0.1:{unused_port()}"
    line = one_line(run("serve", "--port", "0", REDIS_ADDR=f"redis://:secret@{address}"))
    assert address in line
    assert "--embedded" in line
    assert "secret" not in line


def test_a_redis_can_be_waited_for(start_valkey: Callable[..., ValkeyServer]) -> None:
    valkey = start_valkey()
    valkey.kill()
    with subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--wait-for-redis"],
        env=environment(REDIS_ADDR=valkey.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        try:
            while "redis_unreachable" not in (line := server.stderr.readline()):
                assert line, "it gave up"
            valkey.start()
            assert READY.fullmatch(server.stdout.readline())
            assert end(server, signal.SIGTERM)[0] == 0
        finally:
            server.kill()


def test_a_second_server_on_the_redis_is_refused_and_may_take_over(valkey: ValkeyServer) -> None:
    redis = {"REDIS_ADDR": valkey.address}
    with serving("--port", "0", **redis) as (server, _, _):
        line = one_line(run("serve", "--port", "0", **redis))
        assert "the store is owned by" in line
        assert "--take-over" in line
        with serving("--port", "0", "--take-over", **redis) as (successor, _, _):
            out, err = server.communicate(timeout=30)
            assert (server.returncode, out) == (3, ""), err
            assert end(successor, signal.SIGTERM)[0] == 0


def test_a_server_without_a_listener_does_not_keep_the_store(valkey: ValkeyServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        one_line(run("serve", "--port", port, REDIS_ADDR=valkey.address))
    with serving("--port", "0", REDIS_ADDR=valkey.address) as (server, _, _):
        assert end(server, signal.SIGTERM)[0] == 0
