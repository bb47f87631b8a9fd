"""Mutated HTTP/2 and gRPC framing against the whole service, over TCP.

`tests/rpc/server/test_hostile_bytes.py` attacks the transport alone. Here real methods are
behind it: a request that arrived damaged is not carried out in part, and leaves nothing behind.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import structlog

from bench.load import frames
from dbos_actors.api import messages
from tests.support.bug_events import BUG_EVENTS
from tests.support.clients import GrpcioClient
from tests.support.keyspace import Keyspace
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

ATTACKS = 250


def grpc(message: Any, *, flag: int = 0, length: int | None = None) -> bytes:
    body: bytes = message.SerializeToString()
    return struct.pack(">BI", flag, len(body) if length is None else length) + body


def traffic(number: int) -> bytes:
    """A client's bytes: calls of several methods, a stream of results, resets and pings."""
    agent = f"agent-{number % 7}"
    parts = [frames.client_preface()]
    stream = 1
    calls: list[tuple[str, list[Any]]] = [
        ("RegisterAgent", [messages.RegisterAgentRequest(agent={"id": agent, "hostname": "h"})]),
        (
            "SetModuleState",
            [
                messages.SetModuleStateRequest(
                    state={
                        "agent_id": agent,
                        "module_name": "ping",
                        "request_id": f"run-{number}",
                        "state": "running",
                    }
                )
            ],
        ),
        ("GetAgent", [messages.GetAgentRequest(agent_id=agent)]),
        ("ListResults", [messages.ListResultsRequest(agent_id=agent, page_size=10)]),
        (
            "StoreResults",
            [
                messages.StoreResultRequest(
                    result={
                        "id": f"{number}-{n}",
                        "agent_id": agent,
                        "module_name": "m",
                        "data": b"x" * 100,
                    }
                )
                for n in range(5)
            ],
        ),
    ]
    for method, requests in calls:
        headers = frames.RequestHeaders(f"/dbos.DBOS/{method}", "test", 0)
        parts.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream, headers.first))
        parts += [frames.frame(frames.DATA, 0, stream, grpc(request)) for request in requests]
        parts.append(frames.frame(frames.DATA, frames.END_STREAM, stream))
        stream += 2
    parts.append(frames.frame(frames.PING, 0, 0, b"12345678"))
    parts.append(frames.frame(frames.RST_STREAM, 0, 5, struct.pack(">I", 8)))
    return b"".join(parts)


def mutated(data: bytes, choice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(choice.choice([1, 1, 2, 4, 16])):
        position = choice.randrange(24, len(changed))
        match choice.randrange(5):
            case 0:
                changed[position] ^= 1 << choice.randrange(8)
            case 1:
                del changed[position : position + choice.randrange(1, 40)]
            case 2:
                changed[position:position] = choice.randbytes(choice.randrange(1, 40))
            case 3:
                changed[position:position] = changed[position : position + choice.randrange(200)]
            case _:
                del changed[position + 1 :]
                changed += data[choice.randrange(24, len(data)) :]
    return bytes(changed)


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def send_and_leave(address: str, data: bytes, choice: random.Random) -> None:
    """Send in pieces, read a little or nothing, and hang up, with a reset or in order."""
    with connect(address) as attack, suppress(OSError):
        position = 0
        while position < len(data):
            size = choice.choice([1, 9, 200, 10_000])
            attack.sendall(data[position : position + size])
            position += size
        attack.settimeout(0.02)
        if choice.random() < 0.7:
            with suppress(TimeoutError):
                while attack.recv(65_536):
                    pass
        if choice.random() < 0.3:
            attack.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def settled(victim: ServerThread, condition: Callable[[Any], bool]) -> bool:
    """Whether the server's figures come to be so within some seconds."""
    give_up_at = time.monotonic() + 5
    while time.monotonic() < give_up_at:
        if condition(victim.run(victim.inside.rpc.statistics)):
            return True
        time.sleep(0.02)
    return False


def test_mutated_connections_end_and_leave_nothing(
    victim: ServerThread, witness: GrpcioClient, store: ValkeyServer
) -> None:
    assert witness.call("RegisterAgent", agent={"id": "witness"}).success
    with structlog.testing.capture_logs() as logs:
        for number in range(ATTACKS):
            choice = random.Random(number)
            send_and_leave(victim.address, mutated(traffic(number), choice), choice)
            if number % 10 == 0:
                assert witness.call("GetAgent", agent_id="witness", timeout_s=2.0).found
    assert not [log for log in logs if log["event"] in BUG_EVENTS]
    assert settled(victim, lambda figures: figures.connections == 1)
    assert settled(victim, lambda figures: figures.calls_live == 0)
    with store.client() as client:
        kept = Keyspace(client)
    assert kept.problems() == []
    # Much of what came before a mutation was taken; a stream whose client left may have been cut.
    assert sum(len(states) for states in kept.states.values()) > ATTACKS / 4
    assert kept.results


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        (b"\x00\x00\x00\x00\x01", "13"),  # longer than what follows
        (b"\x00\x00\x00\x00", "13"),  # not even a prefix
        (b"\x01\x00\x00\x00\x00", "13"),  # compressed, without an encoding
        (b"\x02\x00\x00\x00\x00", "13"),  # no such flag
        (b"\x00\xff\xff\xff\xff", "8"),  # four gibibytes, announced
        (b"", "13"),  # no message at all
    ],
)
def test_a_broken_grpc_prefix_ends_its_call_and_no_other(
    victim: ServerThread, prefix: bytes, said: str
) -> None:
    headers = frames.RequestHeaders("/dbos.DBOS/GetAgent", "test", 0)
    good = grpc(messages.GetAgentRequest(agent_id="nobody"))
    data = frames.client_preface()
    for stream, body in ((1, prefix), (3, good)):
        data += frames.frame(frames.HEADERS, frames.END_HEADERS, stream, headers.first)
        data += frames.frame(frames.DATA, frames.END_STREAM, stream, body)
    with connect(victim.address) as client:
        client.sendall(data)
        statuses = statuses_of(client, 2)
    assert statuses[3] == "0"
    assert statuses[1] in (said, "12"), statuses


def statuses_of(client: socket.socket, count: int) -> dict[int, str]:
    """grpc-status by stream, of so many streams."""
    from hpack import Decoder  # noqa: PLC0415

    decoder = Decoder()
    found: dict[int, str] = {}
    buffer = b""
    while len(found) < count:
        data = client.recv(65_536)
        assert data, "closed"
        buffer += data
        while len(buffer) >= 9:
            size_kind, _, stream = frames.unpack_header(buffer, 0)
            end = 9 + (size_kind >> 8)
            if len(buffer) < end:
                break
            if size_kind & 0xFF == frames.HEADERS:
                fields: dict[Any, Any] = dict(decoder.decode(buffer[9:end]))
                if "grpc-status" in fields:
                    found[stream] = fields["grpc-status"]
            buffer = buffer[end:]
    return found
