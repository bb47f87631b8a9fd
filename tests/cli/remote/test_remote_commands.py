"""The commands that call a server: what they print, ask, and end with."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dbos_actors.cli import main
from dbos_actors.cli.remote.selftest import Series
from dbos_actors.client import RefusedError
from tests.cli.remote.conftest import Run
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer


def json_of(run: Run, *arguments: str) -> Any:
    result = run(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def store(client: GrpcioClient, number: int, *, data: bytes = b"{}", agent_id: str = "a") -> None:
    result = {"id": f"r{number}", "agent_id": agent_id, "module_name": "ping", "data": data}
    assert client.call("StoreResult", result=result).success


# ------------------------------------------------------------------- agents, runs, results


def test_agents_are_listed_shown_and_deleted(run: Run, client: GrpcioClient) -> None:
    client.call("RegisterAgent", agent={"id": "a", "hostname": "h", "config": {"asn": "3333"}})
    client.call("RegisterAgent", agent={"id": "b", "alive": True})
    assert [agent["id"] for agent in json_of(run, "agents", "list")] == ["a", "b"]
    for arguments, ids in (
        (("--alive",), ["b"]),
        (("--silent",), ["a"]),
        (("--label", "asn=3333"), ["a"]),
        (("--prefix", "b"), ["b"]),
    ):
        assert [agent["id"] for agent in json_of(run, "agents", "list", *arguments)] == ids
    lines = run("agents", "list").stdout.splitlines()
    assert lines[0].split() == ["id", "hostname", "alive", "last", "seen", "total", "heartbeats"]
    assert [line.split()[0] for line in lines[1:]] == ["a", "b"]
    shown = run("agents", "show", "a").stdout
    assert "hostname          h\n" in shown
    assert "config            asn=3333\n" in shown
    declined = run("agents", "delete", "a", input="n\n")
    assert (declined.exit_code, "nothing was done" in declined.stderr) == (1, True)
    assert run("agents", "delete", "a", input="y\n").exit_code == 0
    missing = run("agents", "show", "a")
    assert missing.exit_code == 1
    assert missing.stderr.endswith(": agent 'a' is not registered\n")


def test_runs_are_listed_and_shown(run: Run, client: GrpcioClient) -> None:
    for request_id, name in (("r1", "running"), ("r2", "completed")):
        state = {"agent_id": "a", "module_name": "ping", "request_id": request_id, "state": name}
        assert client.call("SetModuleState", state=state).success
    assert [one["request_id"] for one in json_of(run, "runs", "list", "a")] == ["r1", "r2"]
    (only,) = json_of(run, "runs", "list", "a", "--state", "running")
    assert only["request_id"] == "r1"
    assert json_of(run, "runs", "show", "r2")["state"] == "completed"


def test_results_are_listed_in_order_and_cut_to_a_limit(run: Run, client: GrpcioClient) -> None:
    for number in range(5):
        store(client, number, data=b"%d" % number)
    ids = [result["id"] for result in json_of(run, "results", "list", "a", "--newest-first")]
    assert sorted(ids) == [f"r{number}" for number in range(5)]
    cut = run("results", "list", "a", "--limit", "2", "-o", "jsonl")
    assert len(cut.stdout.splitlines()) == 2
    assert "There are more" in cut.stderr
    assert "There are more" not in run("results", "list", "a", "--limit", "5").stderr
    assert json_of(run, "results", "show", "a", "r3")["data"] == "3"
    assert json_of(run, "results", "list", "a", "--until", "2000-01-01") == []


def test_a_long_listing_is_read_page_by_page(
    run: Run, client: GrpcioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos_actors.client.pages.PAGE_SIZE", 3)
    for number in range(10):
        store(client, number)
    ids = [result["id"] for result in json_of(run, "results", "list", "a", "--all")]
    assert sorted(ids) == sorted(f"r{number}" for number in range(10))


def test_what_clients_stored_cannot_move_the_terminals_cursor(
    run: Run, client: GrpcioClient
) -> None:
    hostile = "\x1b[2J\x9b1m\u202e[bold]x[/bold]\r\n"
    store(client, 1, data=hostile.encode())
    for arguments in (
        ("results", "list", "a"),
        ("results", "list", "a", "-o", "json"),
        ("results", "list", "a", "-o", "jsonl"),
        ("results", "show", "a", "r1"),
    ):
        printed = run(*arguments).stdout
        assert not set(printed) & set("\x1b\x9b\u202e\r"), arguments
        assert "[bold]x[/bold]" in printed
    assert json_of(run, "results", "show", "a", "r1")["data"] == hostile


# ------------------------------------------------------------------------------- tasks


def test_a_task_is_scheduled_cancelled_and_requeued(run: Run, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"\xff\x00")
    scheduled = ("tasks", "schedule", "a", "ping", "--id", "t", "--payload-file", str(payload))
    assert json_of(run, *scheduled) == {"scheduled": "t"}
    assert json_of(run, "tasks", "show", "t")["payload_base64"] == "/wA="
    assert run("tasks", "cancel", "t", input="n\n").exit_code == 1
    assert run("tasks", "cancel", "t", "--reason", "why not", "--yes").exit_code == 0
    (task,) = json_of(run, "tasks", "list", "--status", "cancelled")
    assert (task["id"], task["last_error"]) == ("t", "why not")
    assert run("tasks", "requeue", "t").stdout == "t is requeued\n"
    assert json_of(run, "tasks", "show", "t")["status"] == "pending"
    assert run("tasks", "list", "--status", "dead").stderr == "There are none.\n"


def test_several_tasks_are_cancelled_at_once_and_a_missing_one_is_named(run: Run) -> None:
    for task_id in ("t1", "t2"):
        run("tasks", "schedule", "a", "ping", "--id", task_id)
    asked = run("tasks", "cancel", "t1", "t2", "t3", input="y\n")
    assert "Cancel 3 tasks?" in asked.stderr
    assert asked.stdout == "t1 is cancelled\nt2 is cancelled\n"
    assert asked.exit_code == 1
    assert "t3" in asked.stderr.splitlines()[-1]


# -------------------------------------------------------------------- ping, selftest


def test_ping_says_how_long_it_took(run: Run) -> None:
    result = json_of(run, "ping", "--count", "3", "--interval", "0")
    assert result["calls"] == 3
    assert 0 < result["least_ms"] <= result["median_ms"] <= result["most_ms"]


def test_the_selftest_passes_and_leaves_nothing(run: Run, redis: ValkeyServer) -> None:
    result = run("selftest")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("ok    13 steps, and nothing is left\n")
    left = {key for key in redis.execute("KEYS", "*") if b"selftest" in key}
    assert left == set()
    assert json_of(run, "agents", "list") == []


def test_a_selftest_that_fails_names_the_step_and_cleans_up(
    run: Run, client: GrpcioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wrong(self: object) -> None:
        raise RefusedError("the run is lost")

    monkeypatch.setattr(Series, "_get_state", wrong)
    result = run("selftest")
    assert result.exit_code == 1
    assert "failed: read the run back: the run is lost" in result.stderr
    assert "Nothing is left of it." in result.stderr
    assert json_of(run, "agents", "list") == []


# ---------------------------------------------------------------------------- failures


def failed(*arguments: str, **environment: str) -> str:
    """The one line of a command that could not be carried out."""
    result = CliRunner().invoke(main, arguments, env=environment)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("dbos-actors: ")
    return line


def test_a_server_that_is_away_is_named_with_what_to_do() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        line = failed("agents", "list", DBOS_ADDRESS=address)
    assert line == (
        f"dbos-actors: {address}: nobody answers: Connection refused. --address or DBOS_ADDRESS "
        "says where the server is"
    )


def test_a_malformed_address_says_what_it_must_be() -> None:
    assert "is not HOST:PORT" in failed("agents", "list", "--address", "localhost")


def test_a_server_without_tls_is_told_from_one_that_is_away(server: ServerThread) -> None:
    result = CliRunner().invoke(main, ["ping", "--address", server.address, "--tls"])
    assert result.exit_code == 2
    assert "no TLS connection" in result.stderr


def test_silence_is_told_with_the_time_waited() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        line = failed("ping", "--address", address, "--timeout", "0.2")
    assert "no answer within 0.2 s" in line


def test_a_token_comes_from_the_environment_or_a_file(
    start_server: Callable[..., ServerThread], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    address = start_server(auth_token_file=tokens).address
    line = failed("ping", "--address", address)
    assert "UNAUTHENTICATED" in line
    assert "--token-file or DBOS_TOKEN" in line
    assert "secret" not in failed("ping", "--address", address, "--token", "secret2")
    for arguments, environment in (
        (("--token-file", str(tokens)), {}),
        ((), {"DBOS_TOKEN": "secret"}),
    ):
        command = ("ping", "--count", "1", "--address", address, *arguments)
        assert CliRunner().invoke(main, command, env=environment).exit_code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_commands(shell: str) -> None:
    script = CliRunner().invoke(main, ["completion", shell]).stdout
    assert "_DBOS_ACTORS_COMPLETE" in script
    completed = CliRunner().invoke(
        main,
        env={
            "_DBOS_ACTORS_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": "dbos-actors tasks re",
            "COMP_CWORD": "2" if shell != "fish" else "re",
        },
        prog_name="dbos-actors",
    )
    assert "requeue" in completed.stdout


def test_a_reader_who_has_enough_gets_no_traceback(
    server: ServerThread, client: GrpcioClient
) -> None:
    for number in range(200):
        store(client, number, data=b"x" * 1_000)
    command = [sys.executable, "-m", "dbos_actors", "results", "list", "a", "--all", "-o", "jsonl"]
    with subprocess.Popen(
        [*command, "--address", server.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.readline()
        listing.stdout.close()
        assert listing.stderr.read() == b""
        assert listing.wait(timeout=30) == 1
