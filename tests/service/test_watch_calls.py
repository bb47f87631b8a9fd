"""Watch through real clients: what is sent, in which order, and how a watch ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from dbos_actors import client as sdk
from dbos_actors.api.messages import WatchRequest, WatchResponse
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread
from tests.support.tasks import NOW_S, wait_until
from tests.support.valkey import ValkeyServer
from tests.support.watching import HandWatch

EVENTS = "dbos:{p0}:events"


def register(client: GrpcioClient, agent_id: str = "a", **fields: Any) -> None:
    agent = {"id": agent_id, "alive": True, **fields}
    assert client.call("RegisterAgent", agent=agent).success


def report(
    client: GrpcioClient,
    request_id: str,
    state: str = "running",
    agent_id: str = "a",
    module_name: str = "ping",
    **fields: Any,
) -> None:
    run = {
        "agent_id": agent_id,
        "module_name": module_name,
        "request_id": request_id,
        "state": state,
        **fields,
    }
    assert client.call("SetModuleState", state=run).success


def listed(client: GrpcioClient) -> list[dict[str, Any]]:
    """What GetEvents tells, oldest first."""
    events = client.call("GetEvents", limit=10_000).events
    return [json.loads(event) for event in reversed(events)]


def as_json(event: Any) -> dict[str, Any]:
    return {
        "type": event.type,
        "message": event.message,
        "metadata": dict(event.metadata),
        "timestamp": event.timestamp,
    }


def cursors(events: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(map(int, event.cursor.split("-"))) for event in events]


def test_events_are_sent_from_now_on_as_get_events_lists_them(
    client: GrpcioClient, server: ServerThread
) -> None:
    register(client, "before")
    with HandWatch(server.address) as watch:
        began_at = watch.wait_begun()
        register(client, "a", hostname="h")
        for state in ("created", "running", "completed"):
            report(client, "r", state)
        events = watch.wait_events(4)
        assert [as_json(event) for event in events] == listed(client)[1:]
        assert [event.type for event in events] == [
            "agent.registered",
            "run.created",
            "run.running",
            "run.completed",
        ]
        assert events[0].metadata["hostname"] == "h"
        assert events[0].timestamp == NOW_S
        assert sorted(cursors(events)) == cursors(events)
        assert watch.cursor == events[-1].cursor
    with HandWatch(server.address, cursor=began_at) as again:
        assert again.wait_events(4) == events
    with HandWatch(server.address, cursor=events[1].cursor) as again:
        assert again.wait_events(2) == events[2:]
    with HandWatch(server.address, cursor="0") as again:
        assert next(event.metadata["agent_id"] for event in again.wait_events(5)) == "before"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"agent_id": "a"}, {"a", "a r1", "a r2", "a task"}),
        ({"module_name": "dns"}, {"a r2", "b r1"}),
        ({"request_id": "r1"}, {"a r1", "b r1"}),
        ({"types": ["agent.registered"]}, {"a", "b"}),
        ({"types": ["run.failed", "task.cancelled"]}, {"a r2", "a task"}),
        ({"agent_id": "b", "types": ["run.running", "agent.registered"]}, {"b", "b r1"}),
        ({"agent_id": "a", "module_name": "ping", "request_id": "r1"}, {"a r1"}),
        ({"agent_id": "nobody"}, set()),
    ],
)
def test_only_what_is_wanted_is_sent_live_and_from_the_log(
    client: GrpcioClient, server: ServerThread, wanted: dict[str, Any], expected: set[str]
) -> None:
    def names(watch: HandWatch) -> set[str]:
        found = [
            " ".join(filter(None, (e.metadata["agent_id"], e.metadata.get("request_id"))))
            if "task_id" not in e.metadata
            else f"{e.metadata['agent_id']} task"
            for e in watch.events
        ]
        assert len(found) == len(set(found))
        return set(found)

    with HandWatch(server.address, **wanted) as live, HandWatch(server.address) as all_of_them:
        live.wait_begun()
        all_of_them.wait_begun()
        register(client, "a")
        register(client, "b")
        report(client, "r1", "running", "a", "ping")
        report(client, "r2", "failed", "a", "dns")
        report(client, "r1", "running", "b", "dns")
        task = {"id": "t", "agent_id": "a", "module_name": "web"}
        assert client.call("ScheduleTask", task=task).success
        assert client.call("CancelTask", task_id="t").success
        all_of_them.wait_events(6)
        live.wait_events(len(expected))
        assert names(live) == expected
    with HandWatch(server.address, cursor="0", progress_seconds=1, **wanted) as late:
        late.wait_events(len(expected))
        late.wait_responses(2)
        assert names(late) == expected


def test_progress_keeps_the_cursor_fresh_while_nothing_is_wanted(
    client: GrpcioClient, server: ServerThread
) -> None:
    with (
        HandWatch(server.address, agent_id="nobody", progress_seconds=1) as idle,
        HandWatch(server.address) as busy,
    ):
        idle.wait_begun()
        busy.wait_begun()
        register(client)
        (event,) = busy.wait_events(1)
        wait_until(lambda: idle.cursor == event.cursor)
        assert idle.events == []
        with HandWatch(server.address, cursor=idle.cursor) as again:
            register(client, "b")
            assert [e.metadata["agent_id"] for e in again.wait_events(1)] == ["b"]


def test_a_cursor_that_is_too_old_or_ahead_is_told_so(
    client: GrpcioClient, server: ServerThread, redis: ValkeyServer
) -> None:
    with HandWatch(server.address) as watch:
        watch.wait_begun()
        for number in range(5):
            register(client, f"a{number}")
        events = watch.wait_events(5)
    redis.execute("XTRIM", EVENTS, "MAXLEN", "2")
    with HandWatch(server.address, cursor=events[1].cursor) as watch:
        error = watch.wait_end()
        assert error.status == "OUT_OF_RANGE"
        assert f"cursor {events[1].cursor} is too old" in error.message
        assert f"the oldest one has cursor {events[3].cursor}" in error.message
        assert "Get and List calls, and watch again from cursor 0" in error.message
    with HandWatch(server.address, cursor=events[3].cursor) as watch:
        assert watch.wait_events(1) == events[4:]
    with HandWatch(server.address, cursor="0") as watch:
        assert watch.wait_events(2) == events[3:]
    with HandWatch(server.address, cursor="99999999999999-0") as watch:
        error = watch.wait_end()
        assert error.status == "OUT_OF_RANGE"
        assert f"which ends at cursor {events[4].cursor}" in error.message
    redis.execute("XTRIM", EVENTS, "MAXLEN", "0")
    with HandWatch(server.address, cursor=events[3].cursor) as watch:
        assert watch.wait_end().status == "OUT_OF_RANGE"
    with HandWatch(server.address, cursor=events[4].cursor) as watch:
        watch.wait_begun()
        register(client, "b")
        assert len(watch.wait_events(1)) == 1


@pytest.mark.parametrize(
    ("request_fields", "problem"),
    [
        ({"cursor": "yesterday"}, "cursor is not one that this server has given out"),
        ({"cursor": "1-2-3"}, "cursor is not one"),
        ({"cursor": "-5"}, "cursor is not one"),
        ({"cursor": "9" * 30}, "cursor is not one"),
        ({"cursor": "1" * 10_000}, "cursor is not one"),
        ({"types": ["run.running", "run.Failed"]}, "types has 'run.Failed', which must be one of"),
        ({"types": [""]}, "types has '', which must be one of agent.registered"),
        ({"agent_id": "i" * 257}, "agent_id has 257 bytes, the limit is 256"),
        ({"module_name": "i" * 257}, "module_name has 257 bytes, the limit is 256"),
        ({"request_id": "i" * 257}, "request_id has 257 bytes, the limit is 256"),
        ({"progress_seconds": -1}, "progress_seconds must be from 0 to 3600"),
        ({"progress_seconds": 3601}, "progress_seconds must be from 0 to 3600"),
    ],
)
def test_a_request_that_is_wrong_names_the_field(
    server: ServerThread, request_fields: dict[str, Any], problem: str
) -> None:
    with HandWatch(server.address, **request_fields) as watch:
        error = watch.wait_end()
    assert error.status == "INVALID_ARGUMENT"
    assert problem in error.message


def test_an_event_is_sent_only_when_it_is_committed(
    client: GrpcioClient, server: ServerThread, redis: ValkeyServer
) -> None:
    register(client, "x")
    with HandWatch(server.address, progress_seconds=1) as watch:
        watch.wait_begun()
        redis.pause()
        try:
            pending = client.start("RegisterAgent", agent={"id": "a"})
            watch.wait_responses(3)  # a second and more has passed
            assert watch.events == []
        finally:
            redis.resume()
        assert pending.result().success
        assert [event.metadata["agent_id"] for event in watch.wait_events(1)] == ["a"]


def test_a_client_that_reads_slowly_is_told_and_misses_nothing(
    client: GrpcioClient, server: ServerThread
) -> None:
    count = 6_000
    with HandWatch(server.address, reads=False) as slow, HandWatch(server.address) as quick:
        quick.wait_begun()
        wait_until(lambda: watches(server).watches == 2)
        requests = ({"agent": {"id": f"agent-{n:05}", "hostname": "h" * 200}} for n in range(count))
        assert all(one.success for one in client.call_many("RegisterAgent", requests))
        events = quick.wait_events(count)
        slow.read()
        assert slow.wait_events(count) == events
        assert slow.fell_behind >= 1
        assert watches(server).fallen_behind >= 1
        assert watches(server).ring_bytes <= 16 << 20


def watches(server: ServerThread) -> Any:
    return server.run(server.inside.watchers.statistics)


def test_a_watch_that_the_ring_has_left_behind_goes_on_from_redis(
    start_server: Callable[..., ServerThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbos_actors.actors.watching.watchers.RING_BYTES", 50_000)
    server = start_server()
    count = 4_000
    with (
        GrpcioClient(server.address) as client,
        HandWatch(server.address, reads=False, cursor="0") as slow,
    ):
        wait_until(lambda: watches(server).watches == 1)
        requests = ({"agent": {"id": f"agent-{n:05}", "hostname": "h" * 200}} for n in range(count))
        assert all(one.success for one in client.call_many("RegisterAgent", requests))
        assert watches(server).ring_bytes <= 50_000
        slow.read()
        assert cursors(slow.wait_events(count)) == sorted(cursors(slow.events))
        assert len(slow.events) == count
        assert slow.fell_behind >= 1
        assert watches(server).events_read > 1_000


def test_a_drain_ends_a_watch_with_the_cursor_to_go_on_from(
    start_server: Callable[..., ServerThread],
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client, HandWatch(first.address) as watch:
        watch.wait_begun()
        register(client)
        watch.wait_events(1)
        first.drain(2.0)
        error = watch.wait_end()
    assert error.status == "UNAVAILABLE"
    assert error.message == f"the server is draining: watch again from cursor {watch.cursor}"
    first.stop()
    second = start_server()
    with GrpcioClient(second.address) as client:
        register(client, "b")
        with HandWatch(second.address, cursor=watch.cursor) as again:
            register(client, "c")
            assert [e.metadata["agent_id"] for e in again.wait_events(2)] == ["b", "c"]


def test_the_first_event_of_an_empty_store_is_sent(
    client: GrpcioClient, server: ServerThread
) -> None:
    with HandWatch(server.address) as watch, HandWatch(server.address, cursor="0") as other:
        assert watch.wait_begun() == other.wait_begun() == "0-0"
        register(client)
        assert watch.wait_events(1) == other.wait_events(1)
    with HandWatch(server.address, cursor="5-0") as watch:
        watch.wait_begun()


def test_an_event_whose_call_failed_in_part_is_sent_like_every_other(
    client: GrpcioClient, server: ServerThread, redis: ValkeyServer
) -> None:
    """Redis has executed the commit but for one command, and so it has the event."""
    redis.execute("SET", "dbos:{p0}:unfinished:broken", "no set")
    with HandWatch(server.address, cursor="0") as watch:
        watch.wait_begun()
        register(client, "a")
        outcome = client.start(
            "SetModuleState",
            state={
                "agent_id": "broken",
                "module_name": "m",
                "request_id": "r",
                "state": "running",
            },
        )
        register(client, "b")
        with pytest.raises(Exception, match=r"UNAVAILABLE|DATA_LOSS"):
            outcome.result()
        wait_until(lambda: len(watch.events) == len(listed(client)) >= 2)
        assert [as_json(event) for event in watch.events] == listed(client)


async def _with_aio(address: str, count: int) -> list[str]:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_stream(
            "/dbos.DBOS/Watch",
            request_serializer=WatchRequest.SerializeToString,
            response_deserializer=WatchResponse.FromString,
        )(WatchRequest(cursor="0"))
        names: list[str] = []
        async for response in call:
            names += [event.metadata["agent_id"] for event in response.events]
            if len(names) >= count:
                return names
    raise AssertionError("it ended")


async def _with_sdk(address: str, count: int) -> list[str]:
    names: list[str] = []
    async with sdk.connect(address) as dbos:
        async for response in dbos.watch(sdk.WatchRequest(cursor="0")):
            names += [event.metadata["agent_id"] for event in response.events]
            if len(names) >= count:
                return names
    raise AssertionError("it ended")


@pytest.mark.parametrize("watching", [_with_aio, _with_sdk])
def test_a_watch_through_each_library(
    client: GrpcioClient, server: ServerThread, watching: Callable[[str, int], Any]
) -> None:
    for number in range(600):
        register(client, f"a{number}")
    assert asyncio.run(watching(server.address, 600)) == [f"a{number}" for number in range(600)]


def test_a_watch_is_told_of_a_result_once(start_server: Callable[..., ServerThread]) -> None:
    server = start_server(event_results=True)
    with GrpcioClient(server.address) as client, HandWatch(server.address) as watch:
        watch.wait_begun()
        for result_id in ("r", "r", "s"):
            result = {"id": result_id, "agent_id": "a", "module_name": "m"}
            assert client.call("StoreResult", result=result).success
        told = [(event.type, event.metadata["result_id"]) for event in watch.wait_events(2)]
    assert told == [("result.stored", "r"), ("result.stored", "s")]
