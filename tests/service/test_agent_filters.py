"""Filters of ListAgents: by the beginning of ids, by liveness, by config."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.clients import GrpcioClient

AGENTS = [
    {"id": "atlas-1", "alive": True, "config": {"asn": "3333", "country": "NL"}},
    {"id": "atlas-10", "alive": False, "config": {"asn": "3333"}},
    {"id": "atlas-2", "alive": True, "config": {"asn": "1103"}},
    {"id": "atlas", "alive": True},
    {"id": "atlasé", "alive": False, "config": {"country": "NL"}},
    {"id": "probe-1", "alive": False, "config": {"asn": "3333", "country": "NL"}},
]


@pytest.fixture
def agents(client: GrpcioClient) -> GrpcioClient:
    for agent in AGENTS:
        assert client.call("RegisterAgent", agent=agent).success
    return client


def listed(client: GrpcioClient, *, page_size: int, **filters: Any) -> list[str]:
    """The ids on all pages."""
    found: list[str] = []
    token = ""
    while True:
        page = client.call("ListAgents", page_size=page_size, page_token=token, **filters)
        assert page.error == ""
        assert len(page.agents) <= (page_size or len(AGENTS))
        found += [agent.id for agent in page.agents]
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("page_size", [0, 1, 2, 100])
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"id_prefix": "atlas"}, ["atlas", "atlas-1", "atlas-10", "atlas-2", "atlasé"]),
        ({"id_prefix": "atlas-1"}, ["atlas-1", "atlas-10"]),
        ({"id_prefix": "atlasé"}, ["atlasé"]),
        ({"id_prefix": "nobody"}, []),
        ({"liveness": "alive"}, ["atlas", "atlas-1", "atlas-2"]),
        ({"liveness": "silent"}, ["atlas-10", "atlasé", "probe-1"]),
        ({"config": {"asn": "3333"}}, ["atlas-1", "atlas-10", "probe-1"]),
        ({"config": {"asn": "3333", "country": "NL"}}, ["atlas-1", "probe-1"]),
        ({"config": {"asn": "3333"}, "liveness": "silent", "id_prefix": "atlas"}, ["atlas-10"]),
    ],
)
def test_a_filter_shows_what_it_asks_for_and_nothing_else(
    agents: GrpcioClient, page_size: int, filters: dict[str, Any], expected: list[str]
) -> None:
    assert listed(agents, page_size=page_size, **filters) == expected


def test_a_page_token_holds_for_its_filter_only(agents: GrpcioClient) -> None:
    token = agents.call("ListAgents", page_size=1, liveness="silent").next_page_token
    assert token
    page = agents.call("ListAgents", page_size=1, liveness="alive", page_token=token)
    assert "page_token" in page.error


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"liveness": "dead"}, "liveness must be alive or silent, or empty"),
        ({"id_prefix": "x" * 300}, "id_prefix has 300 bytes, the limit is 256"),
        ({"config": {str(n): "" for n in range(17)}}, "config has 17 entries, the limit is 16"),
        (
            {"id_prefix": "a", "include_unregistered": True},
            "include_unregistered does not go with a filter",
        ),
    ],
)
def test_a_filter_that_cannot_be_is_refused_by_name(
    client: GrpcioClient, fields: dict[str, Any], problem: str
) -> None:
    assert client.call("ListAgents", **fields).error == problem
