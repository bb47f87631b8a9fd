"""Every request message, well-formed, mutated and made up, to every unary method."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.wire import SERVICE, UNARY, is_decodable, requests
from tests.support.bug_events import BUG_EVENTS
from tests.support.clients import CallError, GrpcioClient
from tests.support.keyspace import Keyspace
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

ALLOWED = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}

ATTACK = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def send(client: GrpcioClient, method: str, body: bytes) -> str:
    """The status."""
    try:
        client.call_raw(f"/{SERVICE.full_name}/{method}", body)
    except CallError as error:
        return f"{error.status}: {error.message}"
    return "OK"


@ATTACK
@given(attack=st.lists(requests(), min_size=1, max_size=8))
def test_whatever_is_sent_is_answered_and_hurts_nobody(
    victim: ServerThread,
    attacker: GrpcioClient,
    witness: GrpcioClient,
    attack: list[tuple[str, bytes]],
) -> None:
    with structlog.testing.capture_logs() as logs:
        for method, body in attack:
            status = send(attacker, method, body)
            if is_decodable(method, body):
                assert status == "OK" or status.partition(":")[0] in ALLOWED, (method, body, status)
            else:
                assert status == "INTERNAL: the request message cannot be decoded"
        assert witness.call("RegisterAgent", agent={"id": "witness"}).success
    assert not [log for log in logs if log["event"] in BUG_EVENTS]


def test_the_store_is_consistent_after_the_attack(
    store: ValkeyServer, victim: ServerThread
) -> None:
    """Runs after the attack: odd ids are in every index."""
    with store.client() as client:
        assert Keyspace(client).problems() == []


def test_every_unary_method_is_attacked(victim: ServerThread) -> None:
    served: Any = victim.run(lambda: set(victim.inside._service.methods()))
    assert served == {f"/{SERVICE.full_name}/{name}" for name in UNARY}


def test_an_empty_request_is_answered_in_band_by_every_method(attacker: GrpcioClient) -> None:
    for method in UNARY:
        with suppress(CallError):
            assert send(attacker, method, b"") == "OK", method


def test_a_field_of_four_mebibytes_is_refused_and_the_connection_lives(
    attacker: GrpcioClient,
) -> None:
    result = {"id": "r", "agent_id": "a", "module_name": "m"}
    mib = 1 << 20
    assert attacker.call("StoreResult", result={**result, "data": bytes(mib)}).success
    over = attacker.call("StoreResult", result={**result, "data": bytes(mib + 1)})
    assert over.error == f"result.data has {mib + 1} bytes, the limit is {mib}"
    room = 4 * mib - 100
    over = attacker.call("StoreResult", result={**result, "data": bytes(room)})
    assert str(room) in over.error
    status = send(attacker, "StoreResult", bytes(4 * mib + 1))
    assert status.startswith("RESOURCE_EXHAUSTED"), status
    for field in ("id", "hostname"):
        agent = {"id": "a", field: "x" * room}
        assert (
            f"agent.{field} has {room} bytes" in attacker.call("RegisterAgent", agent=agent).error
        )
    named = attacker.call("GetAgent", agent_id="x" * room)
    assert f"agent_id has {room} bytes" in named.error
    assert attacker.call("ListAgents", page_token="x" * room).error


def test_text_that_is_not_utf_8_is_undecodable(attacker: GrpcioClient) -> None:
    surrogate, overlong, beyond, cut = (
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe4\xb8",
    )
    for text in (surrogate, overlong, beyond, cut, b"\xff"):
        body = b"\x0a" + bytes([len(text)]) + text
        status = send(attacker, "GetAgent", body)
        assert status == "INTERNAL: the request message cannot be decoded"
