"""What operators add: tokens, metrics, TLS, health, reflection, a gentle stop."""

from __future__ import annotations

import queue
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from dbos_actors.api.messages import (
    GetAgentRequest,
    GetAgentResponse,
    StoreResultRequest,
    StoreResultsResponse,
)
from dbos_actors.errors import ConfigurationError
from dbos_actors.store import connector_for
from tests.support.clients import CallError, GrpcioClient
from tests.support.servers import ServerThread
from tests.support.stalling import StallingConnector
from tests.support.valkey import ValkeyServer

TIMEOUT_S = 10.0


def get_agent(channel: grpc.Channel, token: str | None = None) -> Any:
    method = channel.unary_unary(
        "/dbos.DBOS/GetAgent",
        request_serializer=GetAgentRequest.SerializeToString,
        response_deserializer=GetAgentResponse.FromString,
    )
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    return method(GetAgentRequest(agent_id="a"), timeout=TIMEOUT_S, metadata=metadata)


def status_with(channel: grpc.Channel, token: str | None) -> grpc.StatusCode:
    try:
        get_agent(channel, token)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def health_of(channel: grpc.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
    status: int = response.status
    return status


# ------------------------------------------------------------------- tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("# two clients\nfirst\nsecond\n")
    return path


@pytest.fixture
def guarded(start_server: Callable[..., ServerThread], tokens: Path) -> Iterator[grpc.Channel]:
    server = start_server(auth_token_file=tokens)
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.mark.parametrize("token", [None, "third", "firs", "first2"])
def test_a_call_without_a_valid_token_is_unauthenticated(
    guarded: grpc.Channel, token: str | None
) -> None:
    assert status_with(guarded, token) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("token", ["first", "second"])
def test_each_token_of_the_file_is_accepted(guarded: grpc.Channel, token: str) -> None:
    assert status_with(guarded, token) is grpc.StatusCode.OK


def test_a_stream_needs_a_token_too(guarded: grpc.Channel) -> None:
    method = guarded.stream_stream(
        "/dbos.DBOS/StoreResults",
        request_serializer=StoreResultRequest.SerializeToString,
        response_deserializer=StoreResultsResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as refused:
        list(method(iter([]), timeout=TIMEOUT_S))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_health_checks_need_no_token(guarded: grpc.Channel) -> None:
    assert health_of(guarded) == health_pb2.HealthCheckResponse.SERVING


def test_tokens_are_rotated_without_a_restart(guarded: grpc.Channel, tokens: Path) -> None:
    tokens.write_text("third\n")
    wait_until(lambda: status_with(guarded, "third") is grpc.StatusCode.OK)
    assert status_with(guarded, "first") is grpc.StatusCode.UNAUTHENTICATED


def test_a_file_that_cannot_be_used_leaves_the_tokens_as_they_were(
    guarded: grpc.Channel, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.write_text("token\n" * 1_001)
    wait_until(lambda: "tokens_not_reloaded" in caplog.text)
    assert status_with(guarded, "first") is grpc.StatusCode.OK


def test_a_file_without_tokens_revokes_them_all(guarded: grpc.Channel, tokens: Path) -> None:
    assert status_with(guarded, "first") is grpc.StatusCode.OK
    tokens.write_text("# nobody\n")
    wait_until(lambda: status_with(guarded, "first") is grpc.StatusCode.UNAUTHENTICATED, 5.0)
    tokens.write_text("second\n")
    wait_until(lambda: status_with(guarded, "second") is grpc.StatusCode.OK, 5.0)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_the_scheme_of_the_header_may_be_in_any_case(guarded: grpc.Channel, scheme: str) -> None:
    method = guarded.unary_unary("/dbos.DBOS/GetAgent")
    for token, is_known in (("first", True), ("third", False)):
        metadata = [("authorization", f"{scheme} {token}")]
        call = method.future(b"\x0a\x01a", timeout=TIMEOUT_S, metadata=metadata)
        code = grpc.StatusCode.OK if is_known else grpc.StatusCode.UNAUTHENTICATED
        assert call.code() is code


def test_a_revoked_token_ends_its_streams_and_its_calls_that_wait(
    guarded: grpc.Channel, tokens: Path, redis: ValkeyServer
) -> None:
    def subscribe(token: str) -> Any:
        method = guarded.stream_stream("/dbos.DBOS/SubscribeTasks")
        requests: queue.Queue[bytes | None] = queue.Queue()
        requests.put(b"\x0a\x00")  # start, of any task
        metadata = [("authorization", f"Bearer {token}")]
        return method(iter(requests.get, None), timeout=TIMEOUT_S, metadata=metadata), requests

    store = guarded.unary_unary("/dbos.DBOS/StoreResult")
    result = StoreResultRequest()
    result.result.id, result.result.agent_id, result.result.module_name = "r", "a", "m"
    body = result.SerializeToString()
    revoked, revoked_requests = subscribe("first")
    kept, kept_requests = subscribe("second")
    store(body, timeout=TIMEOUT_S, metadata=[("authorization", "Bearer second")])
    redis.pause()
    try:
        waiting = store.future(
            body, timeout=TIMEOUT_S, metadata=[("authorization", "Bearer first")]
        )
        tokens.write_text("second\n")
        started_s = time.monotonic()
        for call in (waiting, revoked):
            assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert time.monotonic() - started_s < 4.0
    finally:
        redis.resume()
    assert kept.is_active()
    assert status_with(guarded, "second") is grpc.StatusCode.OK
    kept.cancel()
    for requests in (revoked_requests, kept_requests):
        requests.put(None)


def test_writing_the_file_in_place_ends_no_stream(guarded: grpc.Channel, tokens: Path) -> None:
    watched = guarded.stream_stream("/dbos.DBOS/SubscribeTasks")
    requests: queue.Queue[bytes | None] = queue.Queue()
    requests.put(b"\x0a\x00")
    metadata = [("authorization", "Bearer first")]
    stream = watched(iter(requests.get, None), timeout=TIMEOUT_S, metadata=metadata)
    assert status_with(guarded, "first") is grpc.StatusCode.OK
    with tokens.open("w") as file:  # empty from here on
        time.sleep(0.4)  # less than two looks are apart
        file.write("first\nthird\n")
    wait_until(lambda: status_with(guarded, "third") is grpc.StatusCode.OK)
    assert stream.is_active()
    stream.cancel()
    requests.put(None)


def test_a_missing_token_file_is_a_configuration_error(
    start_server: Callable[..., ServerThread], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="DBOS_AUTH_TOKEN_FILE"):
        start_server(auth_token_file=tmp_path / "nowhere")


def test_an_unreadable_certificate_is_a_configuration_error(
    start_server: Callable[..., ServerThread], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="DBOS_TLS_CERT"):
        start_server(tls_cert=tmp_path / "nowhere", tls_key=tmp_path / "nowhere")


# ------------------------------------------------------------------ metrics


def test_the_metrics_page_tells_calls_by_method_and_status(
    start_server: Callable[..., ServerThread], tokens: Path
) -> None:
    server = start_server(metrics_port=0, auth_token_file=tokens)
    with grpc.insecure_channel(server.address) as channel:
        for _ in range(3):
            status_with(channel, "first")
        status_with(channel, None)
    url = f"http://127.0.0.1:{server.inside.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as page:
        lines = page.read().decode().splitlines()
    assert 'dbos_calls_total{method="dbos.DBOS/GetAgent",status="OK"} 3.0' in lines
    assert 'dbos_calls_total{method="dbos.DBOS/GetAgent",status="UNAUTHENTICATED"} 1.0' in lines
    assert 'dbos_call_seconds_count{method="dbos.DBOS/GetAgent"} 4.0' in lines
    names = {line.split("{")[0].split(" ")[0] for line in lines}
    assert {
        "dbos_agents_resident",
        "dbos_agents_mailbox_messages_max",
        "dbos_store_queued_bytes",
        "dbos_store_commits",
        "dbos_store_commit_seconds",
        "dbos_store_submissions_committed",
        "dbos_rpc_connections",
        # A metric that was renamed has both names for one release.
        "dbos_store_replayable_bytes",
        "dbos_store_kept_bytes",
    } <= names
    assert "dbos_store_state_connected 1.0" in lines
    assert "dbos_store_state_away 0.0" in lines


# ------------------------------------------------------- health, reflection


def test_health_follows_the_store(server: ServerThread, redis: ValkeyServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        assert health_of(channel, "dbos.DBOS") == health_pb2.HealthCheckResponse.SERVING
        redis.pause()
        try:
            wait_until(lambda: health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING)
        finally:
            redis.resume()
        wait_until(lambda: health_of(channel) == health_pb2.HealthCheckResponse.SERVING)


def test_the_process_is_alive_while_redis_is_away_and_says_why_it_is_not_ready(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    server = start_server(metrics_port=0)
    host = f"http://{server.inside.metrics_address}"
    with grpc.insecure_channel(server.address) as channel:
        assert page_at(f"{host}/readyz") == (200, "ready\n")
        redis.kill()
        try:
            wait_until(lambda: page_at(f"{host}/readyz")[0] == 503)
            assert page_at(f"{host}/readyz") == (503, "Redis is away: away\n")
            assert page_at(f"{host}/healthz") == (200, "alive\n")
            assert health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
            assert health_of(channel, "liveness") == health_pb2.HealthCheckResponse.SERVING
        finally:
            redis.start()
        wait_until(lambda: page_at(f"{host}/readyz")[0] == 200)


def page_at(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as page:  # noqa: S310 - http
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_reflection_tells_the_whole_contract(server: ServerThread) -> None:
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"dbos.DBOS", "grpc.health.v1.Health"} <= set(database.get_services())
        file = database.FindFileContainingSymbol("dbos.DBOS")
        methods = {method.name for service in file.service for method in service.method}
        assert {"StoreResult", "StoreResults", "SubscribeTasks", "ListDueTasks"} <= methods


# -------------------------------------------------------------------- drain


def test_a_drain_sends_watchers_away_and_settles_open_streams(server: ServerThread) -> None:
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        method = channel.stream_stream(
            "/dbos.DBOS/StoreResults",
            request_serializer=StoreResultRequest.SerializeToString,
            response_deserializer=StoreResultsResponse.FromString,
        )
        request = StoreResultRequest()
        request.result.id = "r"
        request.result.agent_id = "a"
        request.result.module_name = "m"
        requests: queue.Queue[StoreResultRequest | None] = queue.Queue()
        requests.put(request)
        stream = method(iter(requests.get, None), timeout=TIMEOUT_S)
        assert next(stream).durable == 1
        started = time.monotonic()
        server.drain(TIMEOUT_S)
        assert time.monotonic() - started < TIMEOUT_S / 2
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for ended in (watch, stream):
            with pytest.raises(grpc.RpcError) as gone:
                next(ended)
            assert gone.value.code() is grpc.StatusCode.UNAVAILABLE
        requests.put(None)


# ----------------------------------------------------------------- liveness


def state(client: GrpcioClient, agent_id: str) -> Any:
    return client.call("GetModuleState", request_id="run", agent_id=agent_id).state


def test_a_silent_agent_is_marked_and_its_unfinished_runs_fail(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(heartbeat_timeout_s=0.6)
    with GrpcioClient(server.address) as client:
        for agent_id in ("silent", "talking"):
            client.call("RegisterAgent", agent={"id": agent_id, "alive": True})
            report = {"agent_id": agent_id, "module_name": "m", "request_id": "run"}
            client.call("SetModuleState", state={**report, "state": "running"})
        report = {"agent_id": "silent", "module_name": "m", "request_id": "other"}
        client.call("SetModuleState", state={**report, "state": "completed"})

        def silent_is_marked() -> bool:
            client.call("RegisterAgent", agent={"id": "talking", "alive": True})
            return not client.call("GetAgent", agent_id="silent").agent.alive

        wait_until(silent_is_marked)
        failed = state(client, "silent")
        assert (failed.state, failed.error_message) == ("failed", "the agent fell silent")
        other = client.call("GetModuleState", request_id="other", agent_id="silent").state
        assert other.state == "completed"
        assert client.call("GetAgent", agent_id="talking").agent.alive
        assert state(client, "talking").state == "running"
        types = {"agent.lapsed", "run.failed"}
        events = client.call("GetEvents", types=sorted(types), agent_id="silent").events
        assert len(events) == 2
        # The agent's own report wins over what was inferred, and brings it back.
        report = {"agent_id": "silent", "module_name": "m", "request_id": "run"}
        assert client.call("SetModuleState", state={**report, "state": "completed"}).success
        assert state(client, "silent").state == "completed"
        client.call("RegisterAgent", agent={"id": "silent", "alive": True})
        assert client.call("GetAgent", agent_id="silent").agent.alive


def test_very_many_unfinished_runs_of_a_silent_agent_all_fail(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(heartbeat_timeout_s=0.6)
    with GrpcioClient(server.address) as client:
        client.call("RegisterAgent", agent={"id": "a", "alive": True})
        reports = (
            {"state": {"agent_id": "a", "module_name": "m", "request_id": f"r{n}", "state": s}}
            for n in range(450)
            for s in ("running",)
        )
        client.call_many("SetModuleState", reports)
        wait_until(lambda: not client.call("GetAgent", agent_id="a").agent.alive)
        listed = client.call("ListModuleStates", agent_id="a").states
        assert len(listed) == 450
        assert {record.state for record in listed} == {"failed"}


def test_an_outage_of_the_store_makes_nobody_silent(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    connector = StallingConnector(connector_for(redis.address))
    server = start_server(connector=connector, heartbeat_timeout_s=2.0)
    with GrpcioClient(server.address) as client:
        client.call("RegisterAgent", agent={"id": "a", "alive": True})
        server.run(connector.stall)
        with pytest.raises(CallError):
            client.call("RegisterAgent", agent={"id": "a", "alive": True}, timeout_s=3.0)
        server.run(connector.release)
        wait_until(lambda: client.call("GetAgent", agent_id="a").agent.alive)
        wait_until(lambda: not client.call("GetAgent", agent_id="a").agent.alive)


# ------------------------------------------------------- an unsafe Redis, seen later


def test_a_server_that_refuses_writes_says_why_and_is_not_ready(
    redis: ValkeyServer, start_server: Callable[..., ServerThread]
) -> None:
    """Reads are served meanwhile; all of it ends when Redis is as it must be again."""
    server = start_server(require_safe_redis=True, metrics_port=0)
    with GrpcioClient(server.address) as client, grpc.insecure_channel(server.address) as channel:
        assert client.call("RegisterAgent", agent={"id": "a"}).success
        redis.execute("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            # A new connection is looked at before it is written to.
            redis.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            wait_until(lambda: health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING)
            with pytest.raises(CallError, match=r"UNAVAILABLE: DBOS_REQUIRE_SAFE_REDIS.*policy"):
                client.call("RegisterAgent", agent={"id": "b"})
            assert client.call("GetAgent", agent_id="a").found
            page = f"http://127.0.0.1:{server.inside.metrics_port}/metrics"
            with urllib.request.urlopen(page, timeout=TIMEOUT_S) as response:
                shown = response.read().decode()
            assert "dbos_store_writes_forbidden 1.0" in shown
            assert "dbos_store_warnings 1.0" in shown
        finally:
            redis.execute("CONFIG", "SET", "maxmemory-policy", "noeviction")
        redis.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: health_of(channel) == health_pb2.HealthCheckResponse.SERVING)
        assert client.call("RegisterAgent", agent={"id": "b"}).success
