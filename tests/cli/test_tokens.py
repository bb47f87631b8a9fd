"""``dbos-actors token`` as an operator meets it, beside a server that uses the file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from dbos_actors.cli.commands import main
from tests.cli.test_commands import one_line, run, serving
from tests.support.clients import CallError, GrpcioClient, outcome_of
from tests.support.valkey import ValkeyServer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def command(*arguments: str, **variables: str) -> Result:
    """Run a command in this process."""
    return CliRunner(env={"COLUMNS": "200", **variables}).invoke(main, ["token", *arguments])


def test_the_token_is_printed_once_and_only_its_hash_is_kept(path: Path) -> None:
    made = command("create", "grafana", "--role", "reader", DBOS_AUTH_TOKEN_FILE=str(path))
    assert made.exit_code == 0
    token = made.stdout.strip()
    assert len(token) == 48
    assert token.startswith("dbos_")
    assert "added grafana (reader, id " in made.stderr
    assert "for ever" in made.stderr
    assert token not in path.read_text(encoding="utf-8") + made.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    listed = command("list", "--file", str(path))
    assert "grafana" in listed.stdout
    assert "never" in listed.stdout
    assert token not in listed.stdout


def test_a_certificate_gets_no_token(path: Path) -> None:
    options = ("--role", "control", "--certificate", "DNS:control.example", "--expires", "90d")
    made = command("create", "control", *options, "--file", str(path))
    assert (made.exit_code, made.stdout) == (0, "")
    assert "until" in made.stderr
    listed = command("list", "--file", str(path))
    assert "certificate DNS:control.example" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("create", "a b", "--role", "admin"), "the name 'a b' must be 1 to 64 letters"),
        (("create", "plain", "--role", "admin"), "the name plain is that of plain tokens"),
        (("create", "a", "--role", "admin", "--expires", "soon"), "--expires soon must be a dur"),
        (("create", "a", "--role", "admin", "--certificate", "a"), "--certificate a must be CN:"),
        (("revoke", "nobody"), "No such file or directory"),
        (("list",), "No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    refused = command(*arguments, "--file", str(path))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("dbos-actors: ")
    assert problem in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not path.exists()


def test_a_refusal_is_one_line_and_an_exit_status(path: Path) -> None:
    assert "nobody has the name" in one_line(created_and_revoked(path))


def created_and_revoked(path: Path) -> subprocess.CompletedProcess[str]:
    command("create", "a", "--role", "reader", "--file", str(path))
    return run("token", "revoke", "b", "--file", str(path))


def test_a_server_follows_what_the_command_does(path: Path, valkey: ValkeyServer) -> None:
    def create(*arguments: str) -> str:
        made = command("create", *arguments, "--file", str(path))
        assert made.exit_code == 0, made.stderr
        return made.stdout.strip()

    reader = create("reader", "--role", "reader")
    variables = {"DBOS_AUTH_TOKEN_FILE": str(path), "REDIS_ADDR": valkey.address}
    with serving("--port", "0", **variables) as (_, address, _redis):
        with GrpcioClient(address, token=reader) as client:
            assert client.call("ListAgents").agents == []
            with pytest.raises(CallError, match="PERMISSION_DENIED: the role 'reader' may not"):
                client.call("DeleteAgent", agent_id="a")
        worker = create("worker", "--role", "worker")
        status = ""
        while status != "OK":
            with GrpcioClient(address, token=worker) as client:
                try:
                    client.call("LeaseTasks")
                    status = "OK"
                except CallError as error:
                    status = error.status
                    assert status == grpc.StatusCode.UNAUTHENTICATED.name
        assert command("revoke", "reader", "--file", str(path)).exit_code == 0
        with GrpcioClient(address, token=reader) as client:
            while not isinstance(refused := outcome_of(client.start("ListAgents")), CallError):
                pass
        assert refused.status == grpc.StatusCode.UNAUTHENTICATED.name
