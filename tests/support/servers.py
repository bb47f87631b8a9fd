"""A whole server inside the test's process, on a Trio loop in a thread of its own.

So that blocking and asyncio clients can talk to it, and a test can reach into it
(`ServerThread.run`) between two steps of its loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

import trio

from dbos_actors.server import RunningServer, open_supervisor
from dbos_actors.settings import load_settings
from dbos_actors.store import Connector

T = TypeVar("T")

START_TIMEOUT_S = 20.0


class SteppedClock:
    """A wall clock that stands still until a test moves it; monotonic time is real."""

    def __init__(self, wall_s: float = 1_700_000_000.0) -> None:
        self.now_s = wall_s

    def monotonic_s(self) -> float:
        return trio.current_time()

    def wall_s(self) -> float:
        return self.now_s


class ServerThread:
    """One server; `start` returns when it serves, `stop` when it is gone."""

    def __init__(
        self,
        redis_addr: str,
        *,
        clock: SteppedClock | None = None,
        connector: Connector | None = None,
        **settings: Any,
    ) -> None:
        values: dict[str, Any] = {"port": 0, "server_id": "server-under-test", **settings}
        self._settings = load_settings(redis_addr=redis_addr, **values)
        self._clock = clock
        self._connector = connector
        self._thread = threading.Thread(target=self._main, name="server")
        self._started = threading.Event()
        self._error: BaseException | None = None
        self.token: trio.lowlevel.TrioToken | None = None
        """Of its loop, for `trio.from_thread`."""
        self._scope = trio.CancelScope()
        self._running: RunningServer | None = None

    @property
    def inside(self) -> RunningServer:
        """The server itself; touch it from its own loop only (`run`)."""
        assert self._running is not None, "not started"
        return self._running

    @property
    def address(self) -> str:
        return self.inside.address

    def start(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            self.stop()
            raise AssertionError("the server does not start")
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def stop(self) -> None:
        """End it at once. Raises what it died of, if it did."""
        if self.token is not None and self._thread.is_alive():
            self.token.run_sync_soon(self._scope.cancel)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function`` in the server's loop."""
        return trio.from_thread.run_sync(function, *args, trio_token=self.token)

    def drain(self, grace_s: float) -> None:
        """`RunningServer.drain`, from here."""
        trio.from_thread.run(self.inside.drain, grace_s, trio_token=self.token)

    def _main(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - told to the test's thread
            self._error = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with open_supervisor(
                self._settings, clock=self._clock, connector=self._connector
            ) as self._running:
                self._started.set()
                await trio.sleep_forever()
