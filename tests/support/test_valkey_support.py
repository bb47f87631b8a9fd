"""The private Valkey behaves as the tests built on it assume."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.valkey import ValkeyServer


def test_a_killed_server_comes_back_with_everything_acknowledged(valkey: ValkeyServer) -> None:
    valkey.execute("SET", "a", "1")
    valkey.restart()
    assert valkey.execute("GET", "a") == b"1"


def test_a_cut_aof_loses_exactly_what_came_after_the_mark(valkey: ValkeyServer) -> None:
    valkey.execute("SET", "a", "1")
    mark = valkey.aof_mark()
    valkey.execute("SET", "a", "2")
    valkey.lose_writes_since(mark)
    assert valkey.execute("GET", "a") == b"1"


def test_a_mark_inside_a_command_loses_that_command(valkey: ValkeyServer) -> None:
    valkey.execute("SET", "a", "1")
    mark = valkey.aof_mark()
    valkey.execute("SET", "a", "2")
    valkey.lose_writes_since(mark + 5)
    assert valkey.execute("GET", "a") == b"1"


def test_a_mark_beyond_the_end_loses_nothing(valkey: ValkeyServer) -> None:
    valkey.execute("SET", "a", "1")
    valkey.lose_writes_since(valkey.aof_mark() + 100)
    assert valkey.execute("GET", "a") == b"1"


def test_directives_are_passed_on(start_valkey: Callable[..., ValkeyServer]) -> None:
    server = start_valkey(tcp=True, maxmemory="9mb")
    assert server.execute("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"9437184"]
    assert server.tcp_address.startswith("127.0.0.1:")


def test_a_paused_server_can_be_killed(valkey: ValkeyServer) -> None:
    valkey.pause()
    valkey.restart()
    assert valkey.execute("PING") is True
