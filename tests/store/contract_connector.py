"""What every connector, real or simulated, must do. Not collected by itself.

A test module subclasses `ConnectorContract` and provides the fixture
``connector``: one to an empty Redis that is up.
"""

from __future__ import annotations

import random

import trio
import trio.testing

from dbos_actors.clock import SystemClock
from dbos_actors.store import Connector, ReplyError, StoreSettings, open_store, pack
from dbos_actors.store.connection import Connection
from tests.support.submissions import RecordingOwner, RecordingSubmission


class ConnectorContract:
    """Streams that speak RESP, and the part of Redis's behaviour that the store relies on."""

    async def test_the_address_is_for_humans(self, connector: Connector) -> None:
        assert connector.address
        assert connector.password is None or connector.password not in connector.address

    async def test_each_stream_is_a_connection_of_its_own(self, connector: Connector) -> None:
        one, two = Connection(await connector.connect()), Connection(await connector.connect())
        try:
            await self._sign_in(one, connector)
            await self._sign_in(two, connector)
            assert await one.call(pack("MULTI") + pack("SET", "k", "1"), 2) == [b"OK", b"QUEUED"]
            assert await two.call(pack("GET", "k"), 1) == [None]
            assert await one.call(pack("EXEC"), 1) == [[b"OK"]]
            assert await two.call(pack("GET", "k"), 1) == [b"1"]
        finally:
            await one.aclose()
            await two.aclose()

    async def test_a_watched_key_that_was_touched_makes_exec_do_nothing(
        self, connector: Connector
    ) -> None:
        one, two = Connection(await connector.connect()), Connection(await connector.connect())
        try:
            await self._sign_in(one, connector)
            await self._sign_in(two, connector)
            await one.call(pack("WATCH", "w"), 1)
            await two.call(pack("SET", "w", "x"), 1)
            payload = pack("MULTI") + pack("SET", "k", "1") + pack("EXEC")
            assert await one.call(payload, 3) == [b"OK", b"QUEUED", None]
            assert await one.call(payload, 3) == [b"OK", b"QUEUED", [b"OK"]]
        finally:
            await one.aclose()
            await two.aclose()

    async def test_a_command_of_the_wrong_form_aborts_its_transaction(
        self, connector: Connector
    ) -> None:
        connection = Connection(await connector.connect())
        try:
            await self._sign_in(connection, connector)
            payload = pack("MULTI") + pack("SET", "k") + pack("SET", "k", "1") + pack("EXEC")
            _, bad, good, aborted = await connection.call(payload, 4)
            assert isinstance(bad, ReplyError)
            assert good == b"QUEUED"
            assert isinstance(aborted, ReplyError)
            assert str(aborted).startswith("EXECABORT")
            assert await connection.call(pack("EXISTS", "k"), 1) == [0]
        finally:
            await connection.aclose()

    async def test_commands_may_arrive_in_any_pieces(self, connector: Connector) -> None:
        stream = await connector.connect()
        connection = Connection(stream)
        try:
            await self._sign_in(connection, connector)
            payload = pack("SET", "k", "v") + pack("GET", "k")
            for at in range(len(payload)):
                await stream.send_all(payload[:at])
                await trio.testing.wait_all_tasks_blocked()
                assert await connection.call(payload[at:], 2) == [b"OK", b"v"]
        finally:
            await connection.aclose()

    async def test_a_store_runs_on_it_and_its_successor_finds_everything(
        self, connector: Connector
    ) -> None:
        settings = StoreSettings(renewal_s=0.02)
        for run in range(2):
            opened = open_store(
                connector, settings=settings, clock=SystemClock(), random=random.Random(run)
            )
            async with opened as store:
                owner = RecordingOwner()
                write = RecordingSubmission(owner, pack("HSET", "h", f"f{run}", run))
                delete = RecordingSubmission(owner, pack("DEL", "nothing"), frees_memory=True)
                barrier = RecordingSubmission(owner)
                for submission in (write, delete, barrier):
                    store.submit(submission)
                assert await write.wait() == [1]
                assert await delete.wait() == [0]
                assert await barrier.wait() == []
                await trio.sleep(0.05)  # a renewal of the lease or two
                assert store.is_current
                (count,) = await store.read(pack("HLEN", "h"))
                assert count == run + 1

    async def _sign_in(self, connection: Connection, connector: Connector) -> None:
        if connector.password is not None:
            who = [connector.username] if connector.username else []
            await connection.call(pack("AUTH", *who, connector.password), 1)
        await connection.call(pack("SELECT", connector.database), 1)
