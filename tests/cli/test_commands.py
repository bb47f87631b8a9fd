"""The command line as an operator meets it: processes, output, exit status."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dbos_actors.settings import descriptions
from dbos_actors.store import StoreSettings
from dbos_actors.store.keys import Keys
from dbos_actors.store.ownership import OwnerProcess
from tests.support.valkey import ValkeyServer

COMMAND = [sys.executable, "-m", "dbos_actors"]
READY = re.compile(r"ready address=(\S+) redis=(\S+(?: metrics=\S+)?)\n")


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


def test_a_metrics_port_in_use_is_named_as_such(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ("serve", "--embedded", "--port", "0", "--metrics-port", port)
        line = one_line(run(*arguments, DBOS_DATA_DIR=str(tmp_path)))
    assert f"cannot listen on 127.0.0.1:{port} (metrics): Address already in use" in line


def test_the_ready_line_tells_a_free_metrics_port(tmp_path: Path) -> None:
    arguments = ("--embedded", "--port", "0", "--metrics-port", "0")
    with serving(*arguments, DBOS_DATA_DIR=str(tmp_path)) as (server, _, redis_and_metrics):
        metrics = redis_and_metrics.partition(" metrics=")[2]
        for path, said in (("metrics", "dbos_calls"), ("healthz", "alive"), ("readyz", "ready")):
            with urllib.request.urlopen(f"http://{metrics}/{path}", timeout=10) as page:
                assert said in page.read().decode()
        assert end(server, signal.SIGTERM)[0] == 0


def test_why_it_cannot_serve_is_a_log_line_if_logs_are_json(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.touch()
    result = run("serve", "--embedded", DBOS_DATA_DIR=str(taken), DBOS_LOG_FORMAT="json")
    line = json.loads(result.stderr.splitlines()[-1])
    assert (line["event"], line["level"], line["exit_status"]) == ("refused", "critical", 2)
    assert str(taken) in line["reason"]
    assert (result.returncode, result.stdout) == (2, "")


def test_a_hangup_has_the_tokens_read_again(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first\n")
    arguments = ("--embedded", "--port", "0")
    settings = {"DBOS_DATA_DIR": str(tmp_path / "data"), "DBOS_AUTH_TOKEN_FILE": str(tokens)}
    with serving(*arguments, **settings) as (server, _, _):
        assert server.stderr is not None
        tokens.write_text("second\nthird\n")
        server.send_signal(signal.SIGHUP)
        while "tokens_reloaded" not in (line := server.stderr.readline()):
            assert line, "it ended"
        assert end(server, signal.SIGTERM)[0] == 0


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
    with waiting_for_redis(valkey) as (server, _):
        valkey.start()
        assert server.stdout is not None
        assert READY.fullmatch(server.stdout.readline())
        assert end(server, signal.SIGTERM)[0] == 0


@contextmanager
def waiting_for_redis(valkey: ValkeyServer) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that has said in its log that it waits, and the line that says so."""
    with subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--wait-for-redis"],
        env=environment(REDIS_ADDR=valkey.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        try:
            while "redis_not_free" not in (line := server.stderr.readline()):
                assert line, "it gave up"
            yield server, line
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


def test_a_wrong_password_and_what_is_no_redis_get_advice_of_their_own(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    valkey = start_valkey(requirepass="secret", tcp=True)
    line = one_line(run("serve", "--port", "0", REDIS_ADDR=f"redis://:wr0ng@{valkey.tcp_address}"))
    assert "WRONGPASS" in line
    assert "redis://USER:PASSWORD@HOST:PORT" in line
    assert "--embedded" not in line
    assert "wr0ng" not in line
    line = one_line(run("serve", "--port", "0", REDIS_ADDR=f"rediss://{valkey.tcp_address}"))
    assert "cannot agree on TLS" in line
    with http_server() as address:
        line = one_line(run("serve", "--port", "0", REDIS_ADDR=address))
    assert f"what listens at redis://{address} does not answer as Redis does" in line


@contextmanager
def http_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_lease_of_an_owner_that_died_elsewhere_can_be_waited_for(valkey: ValkeyServer) -> None:
    died = OwnerProcess(
        host="another-host",
        pid=1,
        started=1,
        boot_id="b",
        pid_namespace="n",
        instance="i",
        address="127.0.0.1:1",
    )
    key = Keys(StoreSettings().partition).owner
    valkey.execute("SET", key, died.to_json())
    line = one_line(run("serve", "--port", "0", REDIS_ADDR=valkey.address))
    assert "process 1 on another-host serving 127.0.0.1:1" in line
    with waiting_for_redis(valkey) as (server, line):
        assert "another-host" in line
        valkey.execute("DEL", key)  # as when its lease runs out
        assert server.stdout is not None
        assert READY.fullmatch(server.stdout.readline())
        assert end(server, signal.SIGTERM)[0] == 0


def test_the_owner_says_which_port_it_was_given(valkey: ValkeyServer) -> None:
    with serving("--port", "0", REDIS_ADDR=valkey.address) as (server, address, _):
        key = Keys(StoreSettings().partition).owner
        given_up_at = time.monotonic() + 10
        while json.loads(valkey.execute("GET", key))["address"] != address:
            assert time.monotonic() < given_up_at
            time.sleep(0.1)
        assert end(server, signal.SIGTERM)[0] == 0


def test_a_server_without_a_listener_does_not_keep_the_store(valkey: ValkeyServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        one_line(run("serve", "--port", port, REDIS_ADDR=valkey.address))
    with serving("--port", "0", REDIS_ADDR=valkey.address) as (server, _, _):
        assert end(server, signal.SIGTERM)[0] == 0
