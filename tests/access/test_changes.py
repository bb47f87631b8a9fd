"""What a change of the token file, or the time, does to calls and streams that are under way."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from dbos_actors.access import token_file
from dbos_actors.access.entries import Entry, digest_of, new_token
from dbos_actors.access.roles import Role
from dbos_actors.errors import ConfigurationError
from tests.access.callers import TIMEOUT_S, bearer
from tests.support.servers import ServerThread, SteppedClock

SECONDS_MAX = 4.0
"""Two looks at the file, half a second apart, and what a busy machine adds."""


class Streams:
    """Subscriptions that stand until they are ended."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._requests: list[queue.Queue[bytes | None]] = []

    def open(self, token: str) -> Any:
        """A subscription, once the server has let it in."""
        requests: queue.Queue[bytes | None] = queue.Queue()
        self._requests.append(requests)
        requests.put(b"\x0a\x00")  # start, of any task
        requests.put(b"\x12\x03\x0a\x01t")  # the acknowledgement of a task that is not there
        method = self._channel.stream_stream("/dbos.DBOS/SubscribeTasks")
        call = method(iter(requests.get, None), timeout=TIMEOUT_S, metadata=bearer(token))
        next(call)
        return call

    def close(self) -> None:
        for requests in self._requests:
            requests.put(None)
        self._channel.close()


@pytest.fixture
def streams(guarded: ServerThread) -> Iterator[Streams]:
    opened = Streams(guarded.address)
    yield opened
    opened.close()


def ends_soon(call: Any, code: grpc.StatusCode) -> str:
    """Wait for the end of a stream; the status' text."""
    started_s = time.monotonic()
    assert call.code() is code
    assert time.monotonic() - started_s < SECONDS_MAX
    return str(call.details())


def test_revoking_ends_the_standing_streams_of_that_principal_alone(
    path: Path, tokens: dict[Role, str], streams: Streams
) -> None:
    revoked, kept = streams.open(tokens[Role.WORKER]), streams.open(tokens[Role.CONTROL])
    token_file.revoke(path, "worker")
    ends_soon(revoked, grpc.StatusCode.UNAUTHENTICATED)
    assert kept.is_active()


def test_a_role_that_is_changed_ends_the_streams_that_it_does_not_allow(
    path: Path, tokens: dict[Role, str], streams: Streams
) -> None:
    changed, kept = streams.open(tokens[Role.WORKER]), streams.open(tokens[Role.CONTROL])
    text = path.read_text(encoding="utf-8")
    lines = text.replace('"worker","role":"worker"', '"worker","role":"reader"')
    lines = lines.replace('"control","role":"control"', '"control","role":"admin"')
    assert lines.count('"reader"') == 3
    path.write_text(lines, encoding="utf-8")
    text = ends_soon(changed, grpc.StatusCode.PERMISSION_DENIED)
    assert "the role 'reader' may not call SubscribeTasks, which needs admin" in text
    assert kept.is_active()


def test_a_token_that_expires_loses_its_streams(
    start_server: Callable[..., ServerThread], path: Path, clock: SteppedClock
) -> None:
    made = [new_token() for _ in range(2)]
    for name, token, left_s in zip(("soon", "later"), made, (60, 86_400), strict=True):
        expires = datetime.fromtimestamp(clock.now_s + left_s, UTC)
        digest = digest_of(token.encode())
        token_file.add(path, Entry(name=name, role=Role.WORKER, sha256=digest, expires=expires))
    opened = Streams(start_server(auth_token_file=path).address)
    expiring, kept = map(opened.open, made)
    clock.now_s += 60
    ends_soon(expiring, grpc.StatusCode.UNAUTHENTICATED)
    assert kept.is_active()
    with pytest.raises(grpc.RpcError) as refused:
        opened.open(made[0])
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    opened.close()


def test_a_second_token_of_a_name_replaces_the_first_without_a_gap(
    path: Path, tokens: dict[Role, str], streams: Streams
) -> None:
    old = streams.open(tokens[Role.WORKER])
    second = new_token()
    digest = digest_of(second.encode())
    token_file.add(path, Entry(name="worker", role=Role.WORKER, sha256=digest))
    deadline_s = time.monotonic() + SECONDS_MAX
    while True:
        try:
            new = streams.open(second)
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline_s
    token_file.revoke(path, digest_of(tokens[Role.WORKER].encode())[:8])
    ends_soon(old, grpc.StatusCode.UNAUTHENTICATED)
    assert new.is_active()


def test_a_file_with_a_line_that_is_none_changes_nothing(
    path: Path, tokens: dict[Role, str], streams: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    standing = streams.open(tokens[Role.WORKER])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"name": "x", "role": "king", "sha256": "00"}\n')
    deadline_s = time.monotonic() + SECONDS_MAX
    while "tokens_not_reloaded" not in caplog.text:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert "line 5: role: Input should be 'admin', 'control', 'worker' or 'reader'" in caplog.text
    assert standing.is_active()


def test_a_server_does_not_start_with_a_line_that_is_none(
    start_server: Callable[..., ServerThread], path: Path
) -> None:
    path.write_text('{"name": "x", "role": "reader", "sha256": "00"}\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"DBOS_AUTH_TOKEN_FILE=.*: line 1: sha256: "):
        start_server(auth_token_file=path)
