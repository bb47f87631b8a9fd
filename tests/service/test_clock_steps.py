"""The wall clock steps back: changes stay in the order in which they were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.service.test_retention import report
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread, SteppedClock


def page(client: GrpcioClient, token: str) -> tuple[list[str], str]:
    response = client.call("ListModuleStates", agent_id="a", page_size=2, page_token=token)
    assert not response.error
    return [state.request_id for state in response.states], response.next_page_token


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_changes_after_a_step_back_comes_at_the_end_of_a_listing(
    start_server: Callable[..., ServerThread], clock: SteppedClock, restart: bool
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        for number in range(6):
            report(client, "a", f"r{number}", "running")
            clock.now_s += 1
        found, token = page(client, "")
        assert found == ["r0", "r1"]
    clock.now_s -= 3_600
    if restart:
        server.stop()
        server = start_server()
    with GrpcioClient(server.address) as client:
        # Neither has been listed yet.
        report(client, "a", "r4", "running")
        report(client, "a", "r2", "completed")
        rest: list[str] = []
        while token:
            found, token = page(client, token)
            rest += found
        assert rest == ["r3", "r5", "r4", "r2"]


@pytest.mark.parametrize("restart", [False, True])
def test_the_agent_that_changed_last_answers_though_the_clock_went_back(
    start_server: Callable[..., ServerThread], clock: SteppedClock, restart: bool
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        report(client, "one", "shared", "running")
    clock.now_s -= 3_600
    if restart:
        server.stop()
        server = start_server()
    with GrpcioClient(server.address) as client:
        report(client, "two", "shared", "running")
    server.stop()
    with GrpcioClient(start_server().address) as client:
        assert client.call("GetModuleState", request_id="shared").state.agent_id == "two"


def test_changes_of_one_moment_are_listed_in_their_order(client: GrpcioClient) -> None:
    """The clock stands still."""
    for number in (3, 1, 2, 0):
        report(client, "a", f"r{number}", "running")
    states = client.call("ListModuleStates", agent_id="a").states
    assert [state.request_id for state in states] == ["r3", "r1", "r2", "r0"]


def test_a_clock_that_was_years_ahead_does_not_keep_later_runs_from_their_age(
    start_server: Callable[..., ServerThread], clock: SteppedClock
) -> None:
    now_s = clock.now_s
    clock.now_s += 10 * 365 * 86_400
    server = start_server()
    with GrpcioClient(server.address) as client:
        report(client, "a", "ahead", "completed")
        clock.now_s = now_s
        report(client, "a", "right", "completed")
        states = client.call("ListModuleStates", agent_id="a").states
        assert [state.request_id for state in states] == ["right", "ahead"]


@pytest.mark.parametrize("method", ["ListAgents", "ListModuleStates", "ListResults"])
def test_page_tokens_of_the_longest_ids_lead_on(
    start_server: Callable[..., ServerThread], method: str
) -> None:
    size = 30_000
    server = start_server(max_id_bytes=size)
    ids = [f"{number}".rjust(size, "x") for number in range(5)]
    with GrpcioClient(server.address) as client:
        fields: dict[str, Any] = {} if method == "ListAgents" else {"agent_id": "a"}
        for one in ids:
            if method == "ListAgents":
                assert client.call("RegisterAgent", agent={"id": one}).success
            elif method == "ListResults":
                result = {"id": one, "agent_id": "a", "module_name": "m"}
                assert client.call("StoreResult", result=result).success
            else:
                report(client, "a", one, "running")
        found: list[str] = []
        token = ""
        for _ in ids:
            response = client.call(method, page_size=1, page_token=token, **fields)
            assert not response.error
            found += [agent.id for agent in getattr(response, "agents", ())]
            found += [result.id for result in getattr(response, "results", ())]
            found += [state.request_id for state in getattr(response, "states", ())]
            token = response.next_page_token
        assert found == ids
        assert not token
