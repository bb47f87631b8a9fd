"""The simulated Redis answers as a real Valkey does: the same commands, the same replies.

Hypothesis makes up sequences of commands over few keys and two connections;
both servers get them in the same order. Only what real servers leave open is
not compared: the order of sets and hashes, and times to live to the millisecond.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hiredis import Reader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbos_actors.actors.event_log import APPEND_IF_NEW_SCRIPT
from dbos_actors.clock import SystemClock
from dbos_actors.store.batch import COMMIT_SCRIPT, RENEW_SCRIPT
from dbos_actors.store.ownership import TAKE_SCRIPT
from dbos_actors.store.resp import ReplyError, pack
from tests.simulation.redis.node import Mode, Node, Refusal
from tests.simulation.redis.session import Session, encoded
from tests.support.valkey import ValkeyServer

Command = tuple[str | bytes | int, ...]


class FixedClock(SystemClock):
    """Time stands still; good enough for what is compared."""

    def monotonic_s(self) -> float:
        return 1_000.0

    def wall_s(self) -> float:
        return 1_700_000_000.0


class RealConnections:
    """Several connections to one Valkey, used one command at a time."""

    def __init__(self, server: ValkeyServer, count: int) -> None:
        self._sockets = [socket.socket(socket.AF_UNIX) for _ in range(count)]
        for connection in self._sockets:
            connection.connect(str(server.socket_path))
        self._readers = [Reader() for _ in range(count)]

    def execute(self, connection: int, *command: str | bytes | int) -> Any:
        self._sockets[connection].sendall(pack(*command))
        reader = self._readers[connection]
        while (reply := reader.gets()) is False:
            reader.feed(self._sockets[connection].recv(65_536))
        return reply

    def reset(self) -> None:
        for connection in range(len(self._sockets)):
            self.execute(connection, "RESET")
        self.execute(0, "FLUSHALL")

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()


class SimulatedConnections:
    """The same of a simulated node."""

    def __init__(self, count: int) -> None:
        self.node = Node("simulated", FixedClock())
        self._sessions = [Session(self.node) for _ in range(count)]

    def execute(self, connection: int, *command: str | bytes | int) -> Any:
        reader = Reader()
        reader.feed(pack(*command))
        reader.feed(encoded(self._sessions[connection].execute(reader.gets())))
        return reader.gets()


@pytest.fixture(scope="module")
def shared_valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer(appendonly="no") as server:
        yield server


@pytest.fixture(scope="module")
def real(shared_valkey: ValkeyServer) -> Iterator[RealConnections]:
    connections = RealConnections(shared_valkey, 2)
    yield connections
    connections.close()


def comparable(command: Command, reply: Any) -> Any:
    """A reply without what servers may choose."""
    if isinstance(reply, ReplyError):
        text = str(reply)
        # The code decides what the product does, and so does the text of few. Where in a script
        # it happened does not.
        text = text.partition(" script: ")[0]
        return ("error", "NOT UNDERSTOOD" if "unknown command" in text else text)
    name = str(command[0]).upper()
    if name == "EVAL" and isinstance(reply, list):
        # Whose replies they are is not taken apart again: order is compared outside scripts.
        return [
            sorted(map(repr, each)) if isinstance(each, list) else comparable(("",), each)
            for each in reply
        ]
    if name in ("SMEMBERS", "SRANDMEMBER", "HKEYS", "KEYS") and isinstance(reply, list):
        return sorted(reply)
    if name == "HGETALL" and isinstance(reply, list):
        return sorted(zip(reply[::2], reply[1::2], strict=True))
    if name == "XINFO" and isinstance(reply, list):
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        return [fields[b"length"], fields[b"last-generated-id"]]
    if name in ("PTTL", "TTL") and isinstance(reply, int) and reply > 0:
        return "some time"
    return reply


def assert_same(
    real: RealConnections, simulated: SimulatedConnections, steps: list[tuple[int, Command]]
) -> None:
    """Run the steps on both and compare every reply; EXEC's are compared command by command."""
    queued: dict[int, list[Command]] = {}
    for position, (connection, command) in enumerate(steps):
        wanted = real.execute(connection, *command)
        got = simulated.execute(connection, *command)
        name = str(command[0])
        if wanted == b"QUEUED":
            queued.setdefault(connection, []).append(command)
        if name == "EXEC" and isinstance(wanted, list) and isinstance(got, list):
            commands = queued.pop(connection, [])
            assert len(got) == len(wanted)
            for each, want, have in zip(commands, wanted, got, strict=True):
                assert comparable(each, have) == comparable(each, want), (position, each, steps)
            continue
        if name in ("EXEC", "DISCARD"):
            queued.pop(connection, None)
        assert comparable(command, got) == comparable(command, wanted), (position, steps)


KEYS = st.sampled_from(["a", "b", "c"])
MEMBERS = st.sampled_from(["m", "n", "o", "p", "q"])
VALUES = st.sampled_from(["", "x", "1", "-5", "0", "yes"])
SCORES = st.sampled_from(["0", "1", "2", "-1", "2.5", "+inf", "1e3", "7"])
BOUNDS = st.sampled_from(["-inf", "+inf", "0", "(1", "2", "(2", "-1", "oops"])
LEX = st.sampled_from(["-", "+", "[n", "(n", "[o", "(p", "oops"])
INDEXES = st.sampled_from(["0", "1", "2", "-1", "-2", "-9", "9"])
IDS = st.sampled_from(["1-0", "1-1", "2-0", "3-5", "4", "0-0", "9-9"])
ID_BOUNDS = st.sampled_from(["-", "+", "1", "1-1", "(1-1", "3-5", "(3-5", "2"])
LIMIT = st.sampled_from([(), ("LIMIT", "0", "2"), ("LIMIT", "1", "-1"), ("LIMIT", "1", "1")])
SCORED = st.sampled_from([(), ("WITHSCORES",)])


def flat(*parts: Any) -> st.SearchStrategy[Command]:
    """A command of fixed and drawn parts; a drawn tuple is spliced in."""

    def joined(drawn: tuple[Any, ...]) -> Command:
        command: list[Any] = []
        for part in drawn:
            command += part if isinstance(part, tuple) else [part]
        return tuple(command)

    strategies = [p if isinstance(p, st.SearchStrategy) else st.just(p) for p in parts]
    return st.tuples(*strategies).map(joined)


def some(strategy: st.SearchStrategy[Any], size: int = 3) -> st.SearchStrategy[Any]:
    return st.lists(strategy, min_size=1, max_size=size).map(tuple)


PAIRS = some(st.tuples(MEMBERS, VALUES)).map(lambda pairs: tuple(p for pair in pairs for p in pair))
SCORE_PAIRS = some(st.tuples(SCORES, MEMBERS)).map(
    lambda pairs: tuple(p for pair in pairs for p in pair)
)
DATA_COMMANDS = st.one_of(
    flat("GET", KEYS),
    flat("SET", KEYS, VALUES),
    flat("SET", KEYS, VALUES, st.sampled_from([("NX",), ("XX",), ("NX", "GET"), ("PX", "90000")])),
    flat("MGET", some(KEYS)),
    flat("INCR", KEYS),
    flat("APPEND", KEYS, VALUES),
    flat("STRLEN", KEYS),
    flat("DEL", some(KEYS)),
    flat("UNLINK", some(KEYS)),
    flat("EXISTS", some(KEYS)),
    flat("TYPE", KEYS),
    flat("PEXPIRE", KEYS, st.sampled_from(["90000", "-1"])),
    flat("EXPIRE", KEYS, "90"),
    flat("PERSIST", KEYS),
    flat("PTTL", KEYS),
    flat("HSET", KEYS, PAIRS),
    flat("HSETNX", KEYS, MEMBERS, VALUES),
    flat("HGET", KEYS, MEMBERS),
    flat("HMGET", KEYS, some(MEMBERS)),
    flat("HGETALL", KEYS),
    flat("HKEYS", KEYS),
    flat("HEXISTS", KEYS, MEMBERS),
    flat("HSTRLEN", KEYS, MEMBERS),
    flat("HLEN", KEYS),
    flat("HDEL", KEYS, some(MEMBERS)),
    flat("HINCRBY", KEYS, MEMBERS, "3"),
    flat("SADD", KEYS, some(MEMBERS)),
    flat("SREM", KEYS, some(MEMBERS)),
    flat("SMEMBERS", KEYS),
    flat("SISMEMBER", KEYS, MEMBERS),
    flat("SCARD", KEYS),
    flat("LPUSH", KEYS, some(VALUES)),
    flat("RPUSH", KEYS, some(VALUES)),
    flat("LLEN", KEYS),
    flat("LRANGE", KEYS, INDEXES, INDEXES),
    flat("LTRIM", KEYS, INDEXES, INDEXES),
    flat("LINDEX", KEYS, INDEXES),
    flat("ZADD", KEYS, SCORE_PAIRS),
    flat("ZADD", KEYS, st.sampled_from(["NX", "XX", "CH", "GT", "LT"]), SCORE_PAIRS),
    flat("ZREM", KEYS, some(MEMBERS)),
    flat("ZCARD", KEYS),
    flat("ZSCORE", KEYS, MEMBERS),
    flat("ZRANK", KEYS, MEMBERS),
    flat("ZREVRANK", KEYS, MEMBERS),
    flat("ZCOUNT", KEYS, BOUNDS, BOUNDS),
    flat("ZRANGE", KEYS, INDEXES, INDEXES, SCORED),
    flat("ZRANGE", KEYS, INDEXES, INDEXES, "REV", SCORED),
    flat("ZRANGE", KEYS, BOUNDS, BOUNDS, "BYSCORE", LIMIT, SCORED),
    flat("ZRANGE", KEYS, BOUNDS, BOUNDS, "BYSCORE", "REV", LIMIT, SCORED),
    flat("ZRANGE", KEYS, LEX, LEX, "BYLEX", LIMIT),
    flat("ZRANGE", KEYS, LEX, LEX, "BYLEX", "REV", LIMIT),
    flat("ZREMRANGEBYSCORE", KEYS, BOUNDS, BOUNDS),
    flat("ZREMRANGEBYRANK", KEYS, INDEXES, INDEXES),
    flat("XADD", KEYS, IDS, PAIRS),
    flat("XADD", KEYS, "MAXLEN", "2", IDS, PAIRS),
    flat("XADD", KEYS, "MAXLEN", "~", "1000", IDS, PAIRS),
    flat("XTRIM", KEYS, "MAXLEN", "1"),
    flat("XTRIM", KEYS, "MINID", "=", IDS),
    flat("SRANDMEMBER", KEYS, "9"),
    flat("XLEN", KEYS),
    flat("XRANGE", KEYS, ID_BOUNDS, ID_BOUNDS),
    flat("XREVRANGE", KEYS, ID_BOUNDS, ID_BOUNDS, "COUNT", "2"),
    flat("XINFO", "STREAM", KEYS),
    st.sampled_from([("GET",), ("NOSUCH", "a"), ("HSET", "a", "m"), ("PING",), ("ZADD", "a")]),
)
SESSION_COMMANDS = st.one_of(
    flat("WATCH", some(KEYS, 2)),
    st.sampled_from([("MULTI",), ("EXEC",), ("EXEC",), ("DISCARD",), ("UNWATCH",)]),
    flat(
        "EVAL",
        TAKE_SCRIPT,
        "3",
        "commit",
        "owner",
        "layout",
        st.sampled_from(["", "me"]),
        "7",
        "me",
        "90000",
        st.sampled_from(["1", "1", "2"]),
    ),
    flat(
        "EVAL",
        RENEW_SCRIPT,
        "2",
        "commit",
        "owner",
        st.sampled_from(["", "7:0"]),
        "me",
        "90000",
    ),
    flat("EVAL", APPEND_IF_NEW_SCRIPT, "2", KEYS, KEYS, MEMBERS, "1000", IDS, "event"),
    flat("SET", st.sampled_from(["commit", "layout"]), st.sampled_from(["7:1", "2", "x"])),
    flat("GET", st.sampled_from(["commit", "owner", "layout"])),
    flat("WATCH", "commit"),
)


@st.composite
def commits(draw: st.DrawFn) -> Command:
    """What the commit script is called with."""
    arguments: list[Any] = []
    for command in draw(st.lists(DATA_COMMANDS, max_size=3)):
        arguments += [len(command), *command]
    before = draw(st.sampled_from(["7:0", "7:0", "", "9:9"]))
    lease = draw(st.sampled_from(["keep", "renew", "release"]))
    head = ("EVAL", COMMIT_SCRIPT, "2", "commit", "owner", before, "7:0", lease, "me", "90000")
    return (*head, *arguments)


STEPS = st.lists(st.tuples(st.integers(0, 1), DATA_COMMANDS), min_size=5, max_size=60)
SESSION_STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.one_of(SESSION_COMMANDS, DATA_COMMANDS, commits())),
    min_size=5,
    max_size=60,
)
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@quick
@given(steps=STEPS)
def test_data_commands_answer_as_a_real_server_does(
    real: RealConnections, steps: list[tuple[int, Command]]
) -> None:
    real.reset()
    assert_same(real, SimulatedConnections(2), steps)


@quick
@given(steps=SESSION_STEPS)
def test_transactions_watches_and_scripts_do_as_in_a_real_server(
    real: RealConnections, steps: list[tuple[int, Command]]
) -> None:
    real.reset()
    assert_same(real, SimulatedConnections(2), steps)


@quick
@given(steps=SESSION_STEPS)
def test_the_log_read_back_gives_the_same_data(steps: list[tuple[int, Command]]) -> None:
    simulated = SimulatedConnections(2)
    for connection, command in steps:
        simulated.execute(connection, *command)
    node = simulated.node
    again = Node("again", node.clock, node.log)
    for either in (node, again):
        either.database.execute([b"KEYS", b"*"], node.now_ms)  # what has expired goes
    assert _contents(again) == _contents(node)


def _contents(node: Node) -> dict[bytes, Any]:
    plain: dict[bytes, Any] = {}
    for key, value in node.database.values.items():
        kept = getattr(value, "scores", None) or getattr(value, "entries", None) or value
        plain[key] = (kept, node.database.expires_ms.get(key))
    return plain


REFUSED_COMMANDS: list[Command] = [
    ("GET", "a"),
    ("SET", "a", "1"),
    ("DEL", "a"),
    ("HDEL", "a", "m"),
    ("PING",),
    ("WATCH", "a"),
    ("UNWATCH",),
    ("EVAL", COMMIT_SCRIPT, "2", "commit", "owner", "", "7:0", "renew", "me", "9", "2", "DEL", "a"),
    ("EVAL", RENEW_SCRIPT, "2", "commit", "owner", "7:0", "me", "9"),
    ("MULTI",),
    ("SET", "a", "1"),
    ("GET", "a"),
    ("EXEC",),
    ("MULTI",),
    ("GET", "a"),
    ("EXEC",),
    ("MULTI",),
    ("DISCARD",),
    ("MULTI",),
    ("DEL", "a"),
    ("EXEC",),
    ("INFO", "persistence"),
]


def code(reply: Any) -> Any:
    """Of an error its code, else the reply."""
    return str(reply).split()[0] if isinstance(reply, ReplyError) else reply


@pytest.mark.parametrize("refusal", [Refusal.OOM, Refusal.READONLY])
def test_a_refusing_server_refuses_the_same_commands(
    shared_valkey: ValkeyServer, real: RealConnections, refusal: Refusal
) -> None:
    real.reset()
    simulated = SimulatedConnections(2)
    simulated.execute(0, "SET", "a", "0")
    real.execute(0, "SET", "a", "0")
    simulated.node.refusal = refusal
    if refusal is Refusal.OOM:
        real.execute(1, "CONFIG", "SET", "maxmemory", "1")
    else:
        real.execute(1, "CONFIG", "SET", "replica-serve-stale-data", "yes")
        real.execute(1, "REPLICAOF", "127.0.0.1", "1")
    try:
        for position, command in enumerate(REFUSED_COMMANDS):
            wanted, got = real.execute(0, *command), simulated.execute(0, *command)
            if command[0] == "INFO":
                continue
            assert code(got) == code(wanted), (position, command, wanted, got)
    finally:
        real.execute(1, "REPLICAOF", "NO", "ONE")
        real.execute(1, "CONFIG", "SET", "maxmemory", "0")


def test_a_loading_server_shows_nothing_but_says_hello() -> None:
    simulated = SimulatedConnections(1)
    simulated.node.mode = Mode.LOADING
    assert simulated.execute(0, "CLIENT", "SETNAME", "x") == b"OK"
    assert code(simulated.execute(0, "GET", "a")) == "LOADING"
    assert simulated.execute(0, "MULTI") == b"OK"
    assert code(simulated.execute(0, "SET", "a", "1")) == "LOADING"
    assert code(simulated.execute(0, "EXEC")) == "EXECABORT"
