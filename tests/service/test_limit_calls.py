"""Beyond each limit the error is in-band and names the field, its size and the limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.clients import CallError, Client, GrpcioClient
from tests.support.servers import ServerThread

KIB = 1024
MIB = 1024 * KIB
LONG = "x" * 257
# 255 characters of 2 bytes each: characters are not what is counted.
WIDE = "ü" * 255

AGENT = {"id": "a"}
STATE = {"agent_id": "a", "module_name": "m", "request_id": "r", "state": "running"}
RESULT = {"id": "r", "agent_id": "a", "module_name": "m"}

LARGE_MAP = {f"k{number}": "v" for number in range(257)}
HEAVY_MAP = {"k": "v" * 64 * KIB}

MUTATIONS: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("RegisterAgent", "agent", {"id": LONG}, "agent.id", "257 bytes, the limit is 256"),
    ("RegisterAgent", "agent", {"id": WIDE}, "agent.id", "510 bytes, the limit is 256"),
    ("RegisterAgent", "agent", {"hostname": LONG}, "agent.hostname", "257 bytes, the limit is 256"),
    (
        "RegisterAgent",
        "agent",
        {"config": LARGE_MAP},
        "agent.config",
        "257 entries, the limit is 256",
    ),
    (
        "RegisterAgent",
        "agent",
        {"config": HEAVY_MAP},
        "agent.config",
        "65537 bytes, the limit is 65536",
    ),
    *[
        ("SetModuleState", "state", {field: LONG}, f"state.{field}", "257 bytes, the limit is 256")
        for field in ("agent_id", "module_name", "request_id", "state")
    ],
    (
        "SetModuleState",
        "state",
        {"error_message": "x" * (64 * KIB + 1)},
        "state.error_message",
        "65537 bytes, the limit is 65536",
    ),
    (
        "SetModuleState",
        "state",
        {"details": LARGE_MAP},
        "state.details",
        "257 entries, the limit is 256",
    ),
    (
        "SetModuleState",
        "state",
        {"details": HEAVY_MAP},
        "state.details",
        "65537 bytes, the limit is 65536",
    ),
    *[
        ("StoreResult", "result", {field: LONG}, f"result.{field}", "257 bytes, the limit is 256")
        for field in (
            "id",
            "agent_id",
            "module_name",
            "agent_runtime_version",
            "module_revision",
            "dbos_server_id",
            "ingest_source",
        )
    ],
    (
        "StoreResult",
        "result",
        {"data": bytes(MIB + 1)},
        "result.data",
        "1048577 bytes, the limit is 1048576",
    ),
]

VALID = {"RegisterAgent": AGENT, "SetModuleState": STATE, "StoreResult": RESULT}


@pytest.mark.parametrize(
    ("method", "message", "fields", "error"),
    [(*case[:3], f"{case[3]} has {case[4]}") for case in MUTATIONS],
    ids=[f"{case[3]} of {case[4]}" for case in MUTATIONS],
)
def test_beyond_a_limit_the_field_its_size_and_the_limit_are_named(
    client: Client, method: str, message: str, fields: dict[str, Any], error: str
) -> None:
    request: dict[str, Any] = {message: {**VALID[method], **fields}}
    response = client.call(method, **request)
    assert not response.success
    assert response.error == error


READS: list[tuple[str, dict[str, Any], str]] = [
    ("GetAgent", {"agent_id": LONG}, "agent_id"),
    ("DeleteAgent", {"agent_id": LONG}, "agent_id"),
    ("GetModuleState", {"request_id": LONG}, "request_id"),
    ("GetModuleState", {"request_id": "r", "agent_id": LONG}, "agent_id"),
    ("ListModuleStates", {"agent_id": LONG}, "agent_id"),
    ("ListModuleStates", {"agent_id": "a", "module_name": LONG}, "module_name"),
    ("ListModuleStates", {"agent_id": "a", "states": [LONG]}, "states"),
    ("GetResult", {"agent_id": LONG, "request_id": "r"}, "agent_id"),
    ("GetResult", {"agent_id": "a", "request_id": LONG}, "request_id"),
    ("ListResults", {"agent_id": LONG}, "agent_id"),
    ("ListResults", {"agent_id": "a", "module_name": LONG}, "module_name"),
    ("GetEvents", {"agent_id": LONG}, "agent_id"),
]


@pytest.mark.parametrize(
    ("method", "fields", "field"), READS, ids=[f"{case[0]} {case[2]}" for case in READS]
)
def test_the_limits_of_reads_are_named_too(
    client: Client, method: str, fields: dict[str, Any], field: str
) -> None:
    response = client.call(method, **fields)
    assert response.error == f"{field} has 257 bytes, the limit is 256"


def test_what_is_exactly_at_its_limit_is_accepted(client: Client) -> None:
    name = "ü" * 128
    maps = {f"{number:03}": "v" * 253 for number in range(256)}  # 256 entries, 64 KiB
    agent = {"id": name, "hostname": name, "config": maps}
    assert client.call("RegisterAgent", agent=agent).success
    assert client.call("GetAgent", agent_id=name).agent.config == maps
    state = {
        "agent_id": name,
        "module_name": name,
        "request_id": name,
        "state": "failed",
        "error_message": "x" * 64 * KIB,
        "details": maps,
    }
    assert client.call("SetModuleState", state=state).success
    assert client.call("GetModuleState", request_id=name).state.details == maps
    result = {"id": name, "agent_id": name, "module_name": name, "data": bytes(MIB)}
    assert client.call("StoreResult", result=result).success
    assert len(client.call("GetResult", agent_id=name, request_id=name).result.data) == MIB


def test_old_clients_get_the_limits_in_band(any_client: Client) -> None:
    response = any_client.call("StoreResult", result={**RESULT, "data": bytes(MIB + 1)})
    assert not response.success
    assert response.error == "result.data has 1048577 bytes, the limit is 1048576"


def test_a_message_beyond_the_message_limit_is_resource_exhausted(any_client: Client) -> None:
    with pytest.raises(CallError) as caught:
        any_client.call("StoreResult", result={**RESULT, "data": bytes(4 * MIB)})
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    assert any_client.call("StoreResult", result=RESULT).success


def test_every_limit_is_a_setting(start_server: Callable[..., ServerThread]) -> None:
    server = start_server(
        max_id_bytes=9,
        max_data_bytes=10,
        max_map_entries=2,
        max_map_bytes=20,
        max_message_bytes=64 * KIB,
    )
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("RegisterAgent", "agent", {"id": "x" * 10}, "agent.id has 10 bytes, the limit is 9"),
        (
            "RegisterAgent",
            "agent",
            {"config": {"1": "", "2": "", "3": ""}},
            "agent.config has 3 entries, the limit is 2",
        ),
        (
            "SetModuleState",
            "state",
            {"details": {"1": "x" * 20}},
            "state.details has 21 bytes, the limit is 20",
        ),
        ("StoreResult", "result", {"data": bytes(11)}, "result.data has 11 bytes, the limit is 10"),
    ]
    with GrpcioClient(server.address) as client:
        for method, message, fields, error in cases:
            request: dict[str, Any] = {message: {**VALID[method], **fields}}
            response = client.call(method, **request)
            assert (response.success, response.error) == (False, error)
        with pytest.raises(CallError) as caught:
            client.call("StoreResult", result={**RESULT, "data": bytes(64 * KIB)})
        assert caught.value.status == "RESOURCE_EXHAUSTED"


def test_too_many_states_in_a_filter_are_refused_in_band(client: Client) -> None:
    response = client.call("ListModuleStates", agent_id="a", states=["s"] * 65)
    assert response.error == "states has 65 names, the limit is 64"


def test_unknown_fields_of_a_record_are_not_kept(client: GrpcioClient) -> None:
    result = client.request("StoreResult", {"result": RESULT}).result.SerializeToString()
    record = result + b"\xfa\x7f\x05extra"  # field 2047
    request = b"\x0a" + bytes((len(record),)) + record
    assert client.call_raw("/dbos.DBOS/StoreResult", request) == b"\x08\x01"
    stored = client.call("GetResult", agent_id="a", request_id="r")
    assert b"extra" not in stored.SerializeToString()
