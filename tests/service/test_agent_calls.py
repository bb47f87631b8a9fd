"""RegisterAgent and GetAgent through real clients."""

from __future__ import annotations

import json

from tests.support.clients import Client
from tests.support.servers import SteppedClock

NOW = 1_700_000_000


def test_what_is_registered_is_read_back_by_every_client(any_client: Client) -> None:
    response = any_client.call(
        "RegisterAgent",
        agent={
            "id": "probe:1/ä {x}%",
            "hostname": "host-1",
            "alive": True,
            "last_seen": 1_600_000_100,
            "first_seen": 1_600_000_000,
            "config": {"region": "eu", "ä": "ö"},
            "total_heartbeats": 7,
        },
    )
    assert (response.success, response.error) == (True, "")

    response = any_client.call("GetAgent", agent_id="probe:1/ä {x}%")
    assert (response.found, response.error) == (True, "")
    agent = response.agent
    assert agent.id == "probe:1/ä {x}%"
    assert agent.hostname == "host-1"
    assert agent.alive is True
    assert agent.last_seen == 1_600_000_100
    assert agent.first_seen == 1_600_000_000
    assert dict(agent.config) == {"region": "eu", "ä": "ö"}
    assert agent.total_heartbeats == 7


def test_an_unknown_agent_is_not_found_and_the_error_names_it(any_client: Client) -> None:
    response = any_client.call("GetAgent", agent_id="nobody")
    assert not response.found
    assert "nobody" in response.error


def test_an_empty_agent_id_is_refused_in_band_by_every_client(any_client: Client) -> None:
    response = any_client.call("GetAgent", agent_id="")
    assert (response.found, response.error) == (False, "agent_id is required")
    response = any_client.call("RegisterAgent", agent={"hostname": "h"})
    assert (response.success, response.error) == (False, "agent.id is required")


def test_times_that_are_not_set_mean_now(client: Client) -> None:
    client.call("RegisterAgent", agent={"id": "a"})
    agent = client.call("GetAgent", agent_id="a").agent
    assert (agent.first_seen, agent.last_seen) == (NOW, NOW)


def test_the_earliest_first_seen_ever_reported_is_kept(client: Client) -> None:
    for first_seen in (500, 900, 300, 0, 400):
        client.call("RegisterAgent", agent={"id": "a", "first_seen": first_seen})
    assert client.call("GetAgent", agent_id="a").agent.first_seen == 300


def test_last_seen_never_goes_back(client: Client, clock: SteppedClock) -> None:
    for last_seen in (500, 900, 300):
        client.call("RegisterAgent", agent={"id": "a", "last_seen": last_seen})
    assert client.call("GetAgent", agent_id="a").agent.last_seen == 900
    client.call("RegisterAgent", agent={"id": "a"})
    clock.now_s -= 1_000
    client.call("RegisterAgent", agent={"id": "a"})
    assert client.call("GetAgent", agent_id="a").agent.last_seen == NOW


def test_the_largest_heartbeat_count_ever_reported_is_kept(client: Client) -> None:
    for total in (5, 2**31 - 1, 0, 17):
        client.call("RegisterAgent", agent={"id": "a", "total_heartbeats": total})
    assert client.call("GetAgent", agent_id="a").agent.total_heartbeats == 2**31 - 1


def test_hostname_config_and_alive_are_what_was_last_reported(client: Client) -> None:
    client.call(
        "RegisterAgent",
        agent={"id": "a", "hostname": "old", "alive": True, "config": {"x": "1", "y": "2"}},
    )
    client.call("RegisterAgent", agent={"id": "a", "hostname": "new", "config": {"x": "3"}})
    agent = client.call("GetAgent", agent_id="a").agent
    assert (agent.hostname, agent.alive, dict(agent.config)) == ("new", False, {"x": "3"})


def test_the_first_registration_and_changes_of_alive_are_events_and_heartbeats_are_not(
    client: Client,
) -> None:
    for alive in (True, True, False, False, True, True):
        client.call("RegisterAgent", agent={"id": "a", "alive": alive})
    events = [json.loads(event) for event in client.call("GetEvents").events]
    assert [event["type"] for event in events] == [
        "agent.alive",
        "agent.offline",
        "agent.registered",
    ]
    assert all(event["metadata"]["agent_id"] == "a" for event in events)


def test_concurrent_heartbeats_of_one_agent_all_count(client: Client) -> None:
    outcomes = client.call_many(
        "RegisterAgent",
        (
            {"agent": {"id": "a", "first_seen": 1_000 - n, "total_heartbeats": n, "last_seen": n}}
            for n in range(1, 301)
        ),
    )
    assert all(outcome.success for outcome in outcomes)
    agent = client.call("GetAgent", agent_id="a").agent
    assert (agent.first_seen, agent.total_heartbeats, agent.last_seen) == (700, 300, 300)
