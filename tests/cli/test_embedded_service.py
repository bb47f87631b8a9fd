"""`serve --embedded` keeps what it acknowledged, whoever of server and Valkey is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import redis

from dbos_actors.client import (
    DbosStub,
    GetResultRequest,
    GRPCError,
    ListResultsRequest,
    MeasurementResult,
    Status,
    StoreResultRequest,
    connect,
)
from tests.cli.test_commands import end, serving

T = TypeVar("T")


def with_client(address: str, body: Callable[[DbosStub], Awaitable[T]]) -> T:
    async def run() -> T:
        async with connect(address, timeout_s=10) as stub:
            return await body(stub)

    return asyncio.run(run())


def storing(number: int) -> StoreResultRequest:
    result = MeasurementResult(
        id=f"result-{number}", agent_id="probe-1", module_name="ping", data=b"x" * 100
    )
    return StoreResultRequest(result=result)


async def acknowledged(stub: DbosStub, number: int) -> None:
    """Stores a result, again and again until it is acknowledged, as a client should."""
    while True:
        try:
            response = await stub.store_result(storing(number))
        except GRPCError as error:
            if error.status not in (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED):
                raise
        else:
            assert response.success, response.error
            return


async def ids(stub: DbosStub) -> set[str]:
    """Every stored id; each can be read by itself too."""
    listed = await stub.list_results(ListResultsRequest(agent_id="probe-1"))
    for result in listed.results:
        one = await stub.get_result(GetResultRequest(agent_id="probe-1", request_id=result.id))
        assert one.result == result
    return {result.id for result in listed.results}


def test_what_was_acknowledged_is_there_after_the_server_was_killed(tmp_path: Path) -> None:
    options = ["--embedded", "--port", "0", "--data-dir", str(tmp_path)]
    expected: set[str] = set()
    for life in range(3):
        with serving(*options) as (server, address, _):

            async def store_and_kill(
                stub: DbosStub, kill: Callable[[], None] = server.kill, life: int = life
            ) -> None:
                for number in range(20):
                    await acknowledged(stub, 100 * life + number)
                kill()

            with_client(address, store_and_kill)
            server.wait(timeout=30)
        expected |= {f"result-{100 * life + number}" for number in range(20)}
    with serving(*options) as (server, address, _):
        assert with_client(address, ids) == expected
        assert end(server, signal.SIGTERM)[0] == 0


def test_a_killed_valkey_is_not_noticed_by_clients_that_retry(tmp_path: Path) -> None:
    with serving("--embedded", "--port", "0", "--data-dir", str(tmp_path)) as (server, address, at):

        async def store_and_kill(stub: DbosStub) -> set[str]:
            for number in range(30):
                if number % 10 == 5:
                    os.kill(valkey_process(at), signal.SIGKILL)
                await acknowledged(stub, number)
            return await ids(stub)

        assert with_client(address, store_and_kill) == {f"result-{n}" for n in range(30)}
        status, _, err = end(server, signal.SIGTERM)
    assert status == 0, err
    assert err.count("embedded_store_ended") == 3


def valkey_process(address: str) -> int:
    """The process id of the Valkey at ``address``, once it answers."""
    with redis.Redis.from_url(
        address, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 200)
    ) as client:
        process_id: int = client.info("server")["process_id"]
        return process_id


@pytest.mark.parametrize("signals", [1, 2])
def test_a_valkey_that_hangs_does_not_hold_up_the_end(signals: int, tmp_path: Path) -> None:
    grace_s = 3.0
    options = ["--embedded", "--port=0", f"--data-dir={tmp_path}"]
    with serving(*options, DBOS_DRAIN_GRACE=str(grace_s)) as (server, address, at):
        with_client(address, lambda stub: acknowledged(stub, 1))
        valkey = valkey_process(at)
        os.kill(valkey, signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            server.send_signal(signal.SIGTERM)
            if signals == 2:
                assert server.stderr is not None
                while "stopping" not in server.stderr.readline():
                    pass
            status, _, err = end(server, signal.SIGTERM) if signals == 2 else ended(server)
            # The grace, and what the interpreter needs to begin and end.
            assert time.monotonic() - began_s < grace_s + 2
        finally:
            os.kill(valkey, signal.SIGCONT)
    assert status == signals - 1, err
    assert "embedded_store_hangs" in err
    with serving(*options) as (server, address, _):
        assert with_client(address, ids) == {"result-1"}
        assert end(server, signal.SIGTERM)[0] == 0


def ended(server: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status, the rest of stdout, and stderr, once it has ended."""
    out, err = server.communicate(timeout=60)
    return server.returncode, out, err


@pytest.mark.parametrize("durability", ["replay", "fsync"])
def test_a_drain_loses_nothing_at_either_durability(durability: str, tmp_path: Path) -> None:
    options = ["--embedded", "--port=0", f"--durability={durability}", f"--data-dir={tmp_path}"]
    with serving(*options) as (server, address, _):

        async def store(stub: DbosStub) -> None:
            await asyncio.gather(*(acknowledged(stub, number) for number in range(50)))

        with_client(address, store)
        assert end(server, signal.SIGTERM)[0] == 0
    with serving(*options) as (server, address, _):
        assert with_client(address, ids) == {f"result-{n}" for n in range(50)}
        assert end(server, signal.SIGTERM)[0] == 0
