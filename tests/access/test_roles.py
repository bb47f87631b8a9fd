"""Every method against every role, through real clients."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from dbos_actors import client as sdk
from dbos_actors.access.principals import Principal
from dbos_actors.access.roles import ROLES_OF, Role, denial, markdown
from tests.access.callers import SERVICE, Outcome, bearer, call_aio, call_sdk, random_message
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "access.md"

CHANGING = {
    "RegisterAgent",
    "Heartbeat",
    "DeleteAgent",
    "SetModuleState",
    "StoreResult",
    "StoreResults",
    "ScheduleTask",
    "CancelTask",
    "RequeueTask",
    "ListDueTasks",
    "LeaseTasks",
    "ExtendLease",
    "AckTask",
    "NackTask",
    "SubscribeTasks",
}
"""Methods that change something, or may."""


def test_every_method_of_the_contract_is_in_the_table() -> None:
    methods = {method.name for method in SERVICE.methods}
    missing = methods - ROLES_OF.keys()
    assert missing == set(), "say in dbos_actors/access/roles.py which roles may call them"
    assert ROLES_OF.keys() - methods == set(), "there are no such methods"


def test_the_page_has_the_table_as_the_code_has_it() -> None:
    assert markdown() in PAGE.read_text(encoding="utf-8"), (
        "run: dbos-actors token roles, and replace the table in docs/access.md"
    )


def test_a_method_that_is_not_in_the_table_is_for_admins_alone() -> None:
    path = b"/dbos.DBOS/Unheard"
    allowed = [role for role in Role if Principal("p", role).may_call(path)]
    assert allowed == [Role.ADMIN]
    assert denial(Role.CONTROL, path).endswith("may not call Unheard, which needs admin")


def test_no_reader_and_no_worker_may_call_what_is_not_theirs() -> None:
    """The table against what is known of the methods: a reader changes nothing."""
    readers = {name for name, roles in ROLES_OF.items() if Role.READER in roles}
    assert readers & CHANGING == set()
    workers = {name for name, roles in ROLES_OF.items() if Role.WORKER in roles}
    assert workers == {
        "GetTask",
        "ListDueTasks",
        "LeaseTasks",
        "ExtendLease",
        "AckTask",
        "NackTask",
        "SubscribeTasks",
    }
    assert {name for name, roles in ROLES_OF.items() if Role.CONTROL in roles} == set(ROLES_OF)


def is_as_the_table_says(method: str, role: Role, outcome: Outcome) -> bool:
    if role in ROLES_OF[method]:
        return outcome.status not in {"PERMISSION_DENIED", "UNAUTHENTICATED"}
    return (
        outcome.status == "PERMISSION_DENIED"
        and f"the role '{role.value}' may not call {method}, which needs admin" in outcome.message
    )


@pytest.mark.parametrize("role", list(Role))
def test_every_method_is_answered_or_denied_by_the_role_through_grpc_aio(
    guarded: ServerThread, tokens: dict[Role, str], role: Role
) -> None:
    async def outcomes() -> list[tuple[str, Outcome]]:
        async with grpc.aio.insecure_channel(guarded.address) as channel:
            return [
                (method.name, await call_aio(channel, method, tokens[role]))
                for method in SERVICE.methods
            ]

    for method, outcome in asyncio.run(outcomes()):
        assert is_as_the_table_says(method, role, outcome), (method, outcome)


@pytest.mark.parametrize("role", list(Role))
def test_every_method_is_answered_or_denied_by_the_role_through_the_sdk(
    guarded: ServerThread, tokens: dict[Role, str], role: Role
) -> None:
    async def outcomes() -> list[tuple[str, Outcome]]:
        async with sdk.connect(guarded.address, token=tokens[role]) as stub:
            return [(method.name, await call_sdk(stub, method)) for method in SERVICE.methods]

    for method, outcome in asyncio.run(outcomes()):
        assert is_as_the_table_says(method, role, outcome), (method, outcome)


@pytest.mark.parametrize("role", list(Role))
def test_reflection_is_for_every_role(
    guarded: ServerThread, tokens: dict[Role, str], role: Role
) -> None:
    class Token(grpc.AuthMetadataPlugin):  # type: ignore[misc]
        def __call__(self, context: Any, callback: Any) -> None:
            callback(bearer(tokens[role]), None)

    credentials = grpc.composite_channel_credentials(
        grpc.local_channel_credentials(), grpc.metadata_call_credentials(Token())
    )
    with grpc.secure_channel(guarded.address, credentials) as channel:
        assert "dbos.DBOS" in ProtoReflectionDescriptorDatabase(channel).get_services()


def dump(redis: ValkeyServer) -> dict[bytes, bytes]:
    """Every key as Redis itself would copy it, without the mark of the last commit.

    Reads may move that: one that has to wait for the writes before it is an empty commit.
    """
    with redis.client() as client:
        names: Any = client.keys("*")
        keys: dict[bytes, Any] = {name: client.dump(name) for name in sorted(names)}
    return {name: value for name, value in keys.items() if not name.endswith(b":commit")}


def test_a_thousand_random_calls_of_a_reader_change_nothing(
    guarded: ServerThread, tokens: dict[Role, str], redis: ValkeyServer
) -> None:
    with GrpcioClient(guarded.address, token=tokens[Role.CONTROL]) as control:
        for agent in ("a", "b"):
            control.call("RegisterAgent", agent={"id": agent, "alive": True})
            state = {"agent_id": agent, "module_name": "m", "request_id": "run", "state": "running"}
            control.call("SetModuleState", state=state)
            result = {"agent_id": agent, "module_name": "m", "id": "result", "data": b"x"}
            control.call("StoreResult", result=result)
        for task in ("task", "completed", "due"):
            control.call("ScheduleTask", task={"id": task, "agent_id": "a", "module_name": "m"})
        control.call("AckTask", task_id="completed")
    before = dump(redis)
    assert len(before) > 15
    choose = random.Random(14)
    methods = [method for method in SERVICE.methods if not method.server_streaming]

    async def attack() -> dict[str, int]:
        counts: dict[str, int] = {}
        async with grpc.aio.insecure_channel(guarded.address) as channel:
            for _ in range(20):
                calls = []
                for method in (choose.choice(methods) for _ in range(48)):
                    body = random_message(method.input_type, choose).SerializeToString()
                    calls.append(call_aio(channel, method, tokens[Role.READER], [body]))
                for method in (choose.choice(list(SERVICE.methods)) for _ in range(2)):
                    body = random_message(method.input_type, choose).SerializeToString()
                    calls.append(call_aio(channel, method, tokens[Role.READER], [body]))
                for outcome in await asyncio.gather(*calls):
                    counts[outcome.status] = counts.get(outcome.status, 0) + 1
        return counts

    counts = asyncio.run(attack())
    assert sum(counts.values()) == 1_000
    assert set(counts) == {"OK", "PERMISSION_DENIED"}
    assert min(counts.values()) > 200
    assert dump(redis) == before
