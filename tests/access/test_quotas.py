"""Quotas of principals and agents, through real clients."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import grpc
import pytest

from dbos_actors.access import token_file
from dbos_actors.access.entries import Entry, digest_of, new_token
from dbos_actors.access.roles import Role
from dbos_actors.api.messages import StoreResultRequest, StoreResultsResponse
from dbos_actors.rpc.wire.schemas import message_class
from tests.access.callers import TIMEOUT_S, bearer
from tests.support.servers import ServerThread

RATE: Final = 50


def add(path: Path, name: str, role: Role = Role.CONTROL, **limits: Any) -> str:
    """A token of a new principal."""
    token = new_token()
    digest = digest_of(token.encode())
    token_file.add(path, Entry(name=name, role=role, sha256=digest, **limits))
    return token


def result(agent_id: str, result_id: str, size: int = 1) -> bytes:
    request = StoreResultRequest()
    request.result.id, request.result.agent_id = result_id, agent_id
    request.result.module_name, request.result.data = "m", b"x" * size
    return request.SerializeToString()


class Caller:
    """One principal's channel."""

    def __init__(self, server: ServerThread, token: str | None = None) -> None:
        self.channel = grpc.insecure_channel(server.address)
        self._metadata = None if token is None else bearer(token)

    def start(self, method: str, body: bytes = b"") -> Any:
        call = self.channel.unary_unary(f"/dbos.DBOS/{method}")
        return call.future(body, timeout=TIMEOUT_S, metadata=self._metadata)

    def store_results(self, bodies: list[bytes]) -> list[StoreResultsResponse]:
        call = self.channel.stream_stream(
            "/dbos.DBOS/StoreResults", response_deserializer=StoreResultsResponse.FromString
        )
        return list(call(iter(bodies), timeout=TIMEOUT_S, metadata=self._metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


def retry_delay_s(call: Any) -> float:
    """What a refused call says about when to come again, as any gRPC library reads it."""
    (value,) = [value for key, value in call.trailing_metadata() if key.endswith("details-bin")]
    status = message_class("google.rpc.Status").FromString(value)
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert status.message == call.details()
    (detail,) = status.details
    assert detail.type_url == "type.googleapis.com/google.rpc.RetryInfo"
    delay = message_class("google.rpc.RetryInfo").FromString(detail.value).retry_delay
    return float(delay.seconds + delay.nanos / 1e9)


def test_a_principal_beyond_its_calls_is_refused_told_when_to_retry_and_alone(
    start_server: Callable[..., ServerThread], path: Path
) -> None:
    busy, calm, admin = (
        add(path, name, role)
        for name, role in (("busy", Role.CONTROL), ("calm", Role.READER), ("admin", Role.ADMIN))
    )
    server = start_server(auth_token_file=path, principal_calls_per_s=RATE)
    with Caller(server, busy) as caller, Caller(server, calm) as other, Caller(server, admin) as op:
        started_s = time.monotonic()
        calls = [caller.start("ListAgents") for _ in range(8 * RATE)]
        codes = [call.code() for call in calls]
        elapsed_s = time.monotonic() - started_s
        ok = codes.count(grpc.StatusCode.OK)
        assert RATE <= ok <= RATE * (1 + elapsed_s) + 1
        refused = [call for call, code in zip(calls, codes, strict=True) if code.value[0]]
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert refused[-1].details() == (
            "the principal 'busy' has used up the quota of 50 calls a second"
        )
        assert {0 < retry_delay_s(call) <= 1 for call in refused} == {True}
        assert [other.start("ListAgents").code() for _ in range(RATE // 2)] == [
            grpc.StatusCode.OK
        ] * (RATE // 2)
        assert {op.start("ListAgents").code() for _ in range(2 * RATE)} == {grpc.StatusCode.OK}
        time.sleep(retry_delay_s(refused[-1]))
        assert caller.start("ListAgents").code() is grpc.StatusCode.OK
    statistics = server.run(server.inside.rpc.statistics)
    assert statistics.calls_excess == len(refused)


def test_bytes_of_requests_and_answers_count(
    start_server: Callable[..., ServerThread], path: Path
) -> None:
    writer = add(path, "writer", bytes_per_second=100_000)
    reader = add(path, "reader", Role.READER, bytes_per_second=100_000)
    server = start_server(auth_token_file=path)
    with Caller(server, writer) as caller, Caller(server, reader) as looker:
        assert caller.start("StoreResult", result("a", "r", 300_000)).code() is grpc.StatusCode.OK
        refused = caller.start("StoreResult", result("a", "s", 10))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1.0 < retry_delay_s(refused) <= 2.1
        assert looker.start("ListResults", b"\x0a\x01a").code() is grpc.StatusCode.OK
        refused = looker.start("ListResults", b"\x0a\x01a")
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1.0 < retry_delay_s(refused) <= 2.1


def test_a_call_that_is_denied_counts_against_the_quota(
    start_server: Callable[..., ServerThread], path: Path
) -> None:
    token = add(path, "reader", Role.READER, calls_per_second=10)
    server = start_server(auth_token_file=path)
    with Caller(server, token) as caller:
        calls = [caller.start("DeleteAgent") for _ in range(40)]
        codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.PERMISSION_DENIED) >= 10
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 20


def test_a_stream_beyond_its_quota_waits_and_loses_nothing(
    start_server: Callable[..., ServerThread], path: Path
) -> None:
    """500 messages are read at once, so those go through; the next wait until they are paid."""
    token = add(path, "writer", calls_per_second=500)
    server = start_server(auth_token_file=path)
    with Caller(server, token) as caller:
        started_s = time.monotonic()
        answers = caller.store_results([result("a", str(number)) for number in range(2_000)])
        elapsed_s = time.monotonic() - started_s
    assert answers[-1].durable == 2_000
    assert not any(answer.rejected for answer in answers)
    assert elapsed_s > (2_000 - 500 - 500) / 500 - 0.1  # without the burst and the last read


def test_an_agent_beyond_its_quota_is_refused_and_its_neighbour_is_not(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(agent_calls_per_s=5)
    with Caller(server) as caller:
        calls = [caller.start("StoreResult", result("busy", str(n))) for n in range(40)]
        codes = [call.code() for call in calls]
        refused = [call for call, code in zip(calls, codes, strict=True) if code.value[0]]
        assert 5 <= codes.count(grpc.StatusCode.OK) < 20
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "the agent 'busy' has used up the quota of 5 calls a second" in refused[-1].details()
        assert 0 < retry_delay_s(refused[-1]) <= 1
        assert caller.start("StoreResult", result("calm", "r")).code() is grpc.StatusCode.OK
        task = b"\x0a\x0c\x0a\x01t\x12\x04busy\x1a\x01m"
        assert caller.start("ScheduleTask", task).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_in_a_stream_the_messages_of_a_busy_agent_are_rejected_and_the_others_stored(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(agent_calls_per_s=5)
    bodies = [result("busy", str(n)) for n in range(30)]
    bodies += [result(f"calm-{n}", "r") for n in range(30)]
    with Caller(server) as caller:
        answers = caller.store_results(bodies)
    rejected = [one for answer in answers for one in answer.rejected]
    assert answers[-1].durable == 60
    assert {one.agent_id for one in rejected} == {"busy"}
    assert 10 <= len(rejected) <= 25
    assert "has used up the quota of 5 calls a second" in rejected[0].error


@pytest.mark.parametrize("connections", [1, 8])
def test_refusing_a_principal_takes_a_tenth_of_the_time_however_it_comes(
    start_server: Callable[..., ServerThread], path: Path, connections: int
) -> None:
    """Each refusal owes 90 microseconds, over all connections; the first reads are at once."""
    flood = add(path, "flood", calls_per_second=1)
    server = start_server(auth_token_file=path)
    count = 12_000 // connections
    callers = [
        grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(connections)
    ]
    started_s = time.monotonic()
    calls = [
        channel.unary_unary("/dbos.DBOS/ListAgents").future(
            b"", timeout=2 * TIMEOUT_S, metadata=bearer(flood)
        )
        for channel in callers
        for _ in range(count)
    ]
    codes = {call.code() for call in calls}
    elapsed_s = time.monotonic() - started_s
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK}
    refused = server.run(server.inside.rpc.statistics).calls_excess
    assert refused > 11_000
    assert elapsed_s > (refused - 4_000) * 90e-6
    for channel in callers:
        channel.close()
