"""Listings page by page: changes in between, equal seconds, size limits, bad tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.clients import CallError, Client, GrpcioClient
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

FIELD = {"ListAgents": "agents", "ListModuleStates": "states", "ListResults": "results"}
LISTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ListAgents", {}),
    ("ListModuleStates", {"agent_id": "a"}),
    ("ListResults", {"agent_id": "a"}),
]
MIB = 1024 * 1024


def pages(client: Client, method: str, page_size: int, **fields: Any) -> Iterator[list[Any]]:
    """The records of one page after the other; the next is asked for when it is wanted."""
    token = ""
    while True:
        response = client.call(method, page_size=page_size, page_token=token, **fields)
        assert not response.error
        yield list(getattr(response, FIELD[method]))
        token = response.next_page_token
        if not token:
            return


def all_ids(found: Iterator[list[Any]]) -> list[str]:
    return [record.id for page in found for record in page]


def register(client: Client, *agents: str) -> None:
    outcomes = client.call_many("RegisterAgent", ({"agent": {"id": agent}} for agent in agents))
    assert all(outcome.success for outcome in outcomes)


def store(client: Client, *results: str, **fields: Any) -> None:
    values = {"agent_id": "a", "module_name": "m", **fields}
    if client.generation != "a":
        values.setdefault("received_at", 1000)
    outcomes = client.call_many("StoreResult", ({"result": {"id": r, **values}} for r in results))
    assert all(outcome.success for outcome in outcomes)


def numbered(count: int, prefix: str = "x") -> list[str]:
    return [f"{prefix}{number:05}" for number in range(count)]


# --------------------------------------------------------------------- old clients


def test_without_a_page_size_everything_comes_in_order(any_client: Client) -> None:
    names = numbered(300)  # more than the server reads in one step
    register(any_client, *reversed(names))
    assert [agent.id for agent in any_client.call("ListAgents").agents] == names
    store(any_client, *reversed(names))
    results = any_client.call("ListResults", agent_id="a").results
    assert sorted(result.id for result in results) == names


def test_an_empty_listing_is_one_empty_page(any_client: Client) -> None:
    assert not any_client.call("ListAgents").agents
    assert not any_client.call("ListModuleStates", agent_id="a").states
    assert not any_client.call("ListResults", agent_id="a").results


# --------------------------------------------------------------------------- pages


@pytest.mark.parametrize("page_size", [1, 3, 10, 11, 500, 100_000])
def test_agents_come_once_each_whatever_the_page_size(client: Client, page_size: int) -> None:
    names = numbered(10)
    register(client, *names)
    found = list(pages(client, "ListAgents", page_size))
    assert [agent.id for page in found for agent in page] == names
    assert len(found) == -(-10 // page_size)
    assert all(len(page) == page_size for page in found[:-1])


def test_a_page_is_larger_than_one_reading_step(client: Client) -> None:
    names = numbered(1_300)
    register(client, *names)
    assert [len(page) for page in pages(client, "ListAgents", 600)] == [600, 600, 100]


def test_agents_that_come_and_go_between_pages_disturb_no_other(client: Client) -> None:
    names = numbered(12)
    register(client, *names)
    found: list[str] = []
    for number, page in enumerate(pages(client, "ListAgents", 3)):
        found += [agent.id for agent in page]
        if number == 0:
            register(client, "a-before", "x00005-between")
            # The last of this page, one before it and one to come.
            for name in (names[2], names[0], names[7]):
                assert client.call("DeleteAgent", agent_id=name).success
    expected = [*names[:6], "x00005-between", names[6], *names[8:]]
    assert found == expected


@pytest.mark.parametrize("newest_first", [False, True])
def test_more_than_a_thousand_results_of_one_second_are_paged_through(
    client: Client, newest_first: bool
) -> None:
    names = numbered(1_200)
    store(client, "early", received_at=999)
    store(client, *names)
    store(client, "late", received_at=1001)
    expected = ["early", *names, "late"]
    if newest_first:
        expected.reverse()
    found = all_ids(pages(client, "ListResults", 100, agent_id="a", newest_first=newest_first))
    assert found == expected


@pytest.mark.parametrize("newest_first", [False, True])
def test_results_of_one_second_that_come_and_go_between_pages_disturb_no_other(
    client: Client, redis: ValkeyServer, newest_first: bool
) -> None:
    names = numbered(1_200)
    store(client, *names)
    order = list(reversed(names)) if newest_first else names
    gone = {order[0], order[99], order[50], order[101], order[1_100]}
    found: list[str] = []
    for number, page in enumerate(
        pages(client, "ListResults", 100, agent_id="a", newest_first=newest_first)
    ):
        found += [result.id for result in page]
        if number == 0:
            store(client, "a-before-all", "z-after-all")
            for name in gone:  # as retention does
                redis.execute("HDEL", "dbos:{p0}:results:a", name)
                redis.execute("ZREM", "dbos:{p0}:results-at:a", name)
    survivors = [name for name in order[100:] if name not in gone]
    inserted = ["a-before-all"] if newest_first else ["z-after-all"]
    assert found == [*order[:100], *survivors, *inserted]


def test_filters_hold_on_every_page(client: Client) -> None:
    for second in range(40):
        store(client, f"r{second:02}", received_at=second + 1, module_name=f"m{second % 3}")
    found = all_ids(
        pages(
            client,
            "ListResults",
            4,
            agent_id="a",
            since=10,
            until=31,
            module_name="m0",
            newest_first=True,
        )
    )
    assert found == [f"r{second:02}" for second in reversed(range(9, 30)) if second % 3 == 0]


def test_states_that_change_between_pages_come_at_the_end_and_none_is_missed(
    client: Client, clock: SteppedClock
) -> None:
    def report(request_id: str, state: str) -> None:
        clock.now_s += 0.001
        fields = {"agent_id": "a", "module_name": "m", "request_id": request_id, "state": state}
        assert client.call("SetModuleState", state=fields).success

    for run in numbered(9):
        report(run, "created")
    found: list[tuple[str, str]] = []
    for number, page in enumerate(pages(client, "ListModuleStates", 3, agent_id="a")):
        found += [(state.request_id, state.state) for state in page]
        if number == 0:
            report("x00001", "running")
            report("x00005", "running")
    assert found == [
        *[(f"x0000{n}", "created") for n in (0, 1, 2, 3, 4, 6, 7, 8)],
        ("x00001", "running"),
        ("x00005", "running"),
    ]


def test_states_of_one_millisecond_are_paged_through(client: Client) -> None:
    """The clock of the server stands still. The calls are made in turn, so their order is known."""
    for run in numbered(700):
        state = {"agent_id": "a", "module_name": "m", "request_id": run, "state": "created"}
        assert client.call("SetModuleState", state=state).success
    filters: list[dict[str, Any]] = [{}, {"module_name": "m"}, {"states": ["created", "running"]}]
    for fields in filters:
        found = [
            state.request_id
            for page in pages(client, "ListModuleStates", 64, agent_id="a", **fields)
            for state in page
        ]
        assert found == numbered(700)


# -------------------------------------------------------------------- size limits


def test_everything_at_once_beyond_the_message_limit_names_page_size(any_client: Client) -> None:
    for name in numbered(5):
        store(any_client, name, data=bytes(MIB))
    with pytest.raises(CallError, match="page_size") as caught:
        any_client.call("ListResults", agent_id="a")
    assert caught.value.status == "RESOURCE_EXHAUSTED"


def test_pages_end_before_the_message_limit(client: Client) -> None:
    names = numbered(9)
    for name in names:
        store(client, name, data=bytes(MIB))  # three fit into 4 MiB
    found = list(pages(client, "ListResults", 1_000, agent_id="a"))
    assert [len(page) for page in found] == [3, 3, 3]
    assert all_ids(iter(found)) == names


def test_many_agents_beyond_the_message_limit_are_listed_in_pages_only(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(max_message_bytes=64 << 10, max_data_bytes=32 << 10)
    with GrpcioClient(server.address) as client:
        names = numbered(300)
        outcomes = client.call_many(
            "RegisterAgent", ({"agent": {"id": n, "config": {"k": "v" * 400}}} for n in names)
        )
        assert all(outcome.success for outcome in outcomes)
        with pytest.raises(CallError, match="page_size") as caught:
            client.call("ListAgents")
        assert caught.value.status == "RESOURCE_EXHAUSTED"
        assert all_ids(pages(client, "ListAgents", 10_000)) == names


# ----------------------------------------------------------------------- bad tokens


def first_token(client: Client, method: str, **fields: Any) -> str:
    token = client.call(method, page_size=1, **fields).next_page_token
    assert token
    return str(token)


@pytest.mark.parametrize("token", ["x", "AAAA", "a" * 40, "ä", "=", "🦆" * 9, "a" * 20_000])
def test_a_token_that_is_none_is_refused_in_band(client: Client, token: str) -> None:
    for method, fields in (*LISTINGS, ("GetEvents", {})):
        response = client.call(method, page_token=token, **fields)
        assert "page_token" in response.error, method


def test_a_token_of_another_listing_is_refused_in_band(client: Client) -> None:
    register(client, "a", "b")
    store(client, "r", "s")
    agents = first_token(client, "ListAgents")
    results = first_token(client, "ListResults", agent_id="a")
    misuses: list[tuple[str, str, dict[str, Any]]] = [
        ("ListResults", agents, {"agent_id": "a"}),
        ("ListAgents", results, {}),
        ("ListResults", results, {"agent_id": "b"}),
        ("ListResults", results, {"agent_id": "a", "newest_first": True}),
        ("ListResults", results, {"agent_id": "a", "since": 5}),
        ("ListModuleStates", results, {"agent_id": "a"}),
    ]
    for method, token, fields in misuses:
        response = client.call(method, page_size=1, page_token=token, **fields)
        assert "page_token" in response.error, (method, fields)


def test_a_changed_token_is_refused_in_band(client: Client) -> None:
    register(client, "a", "b")
    token = first_token(client, "ListAgents")
    for position in range(len(token)):
        other = "A" if token[position] != "A" else "B"
        broken = token[:position] + other + token[position + 1 :]
        response = client.call("ListAgents", page_token=broken)
        assert "page_token" in response.error
    assert "page_token" in client.call("ListAgents", page_token=token[:-1]).error


def test_a_token_holds_for_another_page_size(client: Client) -> None:
    register(client, *numbered(10))
    token = first_token(client, "ListAgents")
    response = client.call("ListAgents", page_size=4, page_token=token)
    assert [agent.id for agent in response.agents] == numbered(10)[1:5]


def test_a_token_outlives_the_server(start_server: Callable[..., ServerThread]) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        register(client, *numbered(3))
        token = first_token(client, "ListAgents")
    first.stop()
    with GrpcioClient(start_server().address) as client:
        response = client.call("ListAgents", page_token=token)
        assert [agent.id for agent in response.agents] == numbered(3)[1:]


def test_a_negative_page_size_is_refused_in_band(client: Client) -> None:
    for method, fields in LISTINGS:
        response = client.call(method, page_size=-1, **fields)
        assert response.error == "page_size must not be negative"
