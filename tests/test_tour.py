"""docs/getting-started.md, step by step: what it says to run, and what it says comes out."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from google.protobuf import json_format

from dbos_actors.api import messages
from dbos_actors.server import open_supervisor
from dbos_actors.settings import Settings
from dbos_actors.store.embedded import open_embedded

PAGE = Path(__file__).resolve().parent.parent / "docs" / "getting-started.md"
COMMAND = re.compile(r"^\$ ([^\n]*)\n(\{.*?^\})$", re.DOTALL | re.MULTILINE)
METHODS = messages.DESCRIPTOR.services_by_name["DBOS"].methods_by_name


def blocks(language: str) -> list[str]:
    """The page's blocks in a language, in order."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a server that has just been started."""
    async with open_embedded(tmp_path) as store:
        settings = Settings(port=0, redis_addr=store.address)
        async with open_supervisor(settings) as server:
            yield server.address


async def test_the_program_prints_what_the_tour_says(address: str) -> None:
    (program,) = blocks("python")
    (printed,) = blocks("text")

    def run() -> subprocess.CompletedProcess[str]:
        code = program.replace("127.0.0.1:50051", address)
        command = [sys.executable, "-W", "error", "-c", code]
        return subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)

    result = await trio.to_thread.run_sync(run)
    assert result.stdout == printed, result.stderr
    again = await trio.to_thread.run_sync(run)
    assert again.stdout == ""
    assert "ValueError: not enough values to unpack" in again.stderr


def calls() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each grpcurl command of the page: its method, its request and the response it shows."""
    shown = []
    for block in blocks("console"):
        for command, response in COMMAND.findall(block):
            words = shlex.split(command)
            assert words[:3] == ["grpcurl", "-plaintext", "-d"]
            assert words[4] == "127.0.0.1:50051"
            shown.append((words[5], json.loads(words[3]), json.loads(response)))
    return shown


def test_every_command_shows_its_response() -> None:
    assert len(calls()) == sum(block.count("$ grpcurl") for block in blocks("console")) == 9


async def test_the_commands_answer_what_the_tour_says(address: str) -> None:
    def run() -> None:
        with grpc.insecure_channel(address) as channel:
            for path, request, expected in calls():
                method = METHODS[path.removeprefix("dbos.DBOS/")]
                call = channel.unary_unary(
                    f"/{path}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=getattr(messages, method.output_type.name).FromString,
                )
                sent = json_format.ParseDict(request, getattr(messages, method.input_type.name)())
                response = json_format.MessageToDict(call(sent, timeout=30))
                for task in (*response.get("tasks", ()), *expected.get("tasks", ())):
                    assert len(task.pop("leaseToken")) == 16
                    assert task.pop("visibilityTime").isdigit()
                assert response == expected, path

    await trio.to_thread.run_sync(run)
