"""Start, signals, drain and exit status of a server, around a supervisor that is a fake."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dbos_actors.cli.serving import (
    Exit,
    Server,
    StoppedAtOnceError,
    exit_of,
    leaves,
    serve,
)
from dbos_actors.errors import (
    CannotListenError,
    ConfigurationError,
    FencedError,
    NotRedisError,
    OwnedElsewhereError,
    StoreRefusesError,
    StoreTlsError,
    StoreUnreachableError,
    UnsafeStoreError,
)
from dbos_actors.settings import Settings
from dbos_actors.store.connector import Connector


class FakeSupervisor:
    """Records what is asked of it; fails or hangs on demand."""

    def __init__(self, *failures: BaseException) -> None:
        self.addresses = ("127.0.0.1:1", "unix:/tmp/s")
        self.metrics_address: str | None = None
        self.failures = list(failures)
        self.events: list[str] = []
        self.connector: Connector | None = None
        self.take_over = False
        self.fails = trio.Event()
        self.failure: Exception = FencedError("epoch 2")
        self.opening = trio.Event()
        self.draining = trio.Event()
        self.drains = trio.Event()
        self.drains.set()

    @asynccontextmanager
    async def open(
        self, settings: Settings, *, connector: Connector, take_over: bool
    ) -> AsyncIterator[Server]:
        self.connector = connector
        self.take_over = take_over
        self.events.append("open")
        self.opening.set()
        if self.failures:
            raise self.failures.pop(0)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fail)
                yield self
                nursery.cancel_scope.cancel()
        finally:
            self.events.append("closed")

    async def _fail(self) -> None:
        await self.fails.wait()
        raise self.failure

    def reload(self) -> None:
        self.events.append("reload")
        os.kill(os.getpid(), signal.SIGTERM)

    async def drain(self, grace_s: float) -> None:
        self.events.append(f"drain {grace_s:g}")
        self.draining.set()
        await self.drains.wait()


class Announced:
    """The lines announced, and a way to wait for the first."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ready = trio.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.ready.set()


async def serve_and(
    then: Callable[[], None], fake: FakeSupervisor, settings: Settings | None = None
) -> list[str]:
    """Serve, do ``then`` when ready, wait for the end; the lines announced."""
    announced = Announced()

    async def act() -> None:
        await announced.ready.wait()
        then()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            try:
                await serve(
                    settings or Settings(redis_addr="redis://:secret@localhost:1"),
                    open_supervisor=fake.open,
                    announce=announced,
                )
            finally:
                nursery.cancel_scope.cancel()
    return announced.lines


def send(*numbers: signal.Signals) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_it(number: signal.Signals) -> None:
    fake = FakeSupervisor()
    await serve_and(send(number), fake, Settings(drain_grace_s=20))
    assert fake.events == ["open", "drain 14", "closed"]


async def test_one_ready_line_names_every_address_and_no_password() -> None:
    lines = await serve_and(send(signal.SIGTERM), FakeSupervisor())
    assert lines == ["ready address=127.0.0.1:1,unix:/tmp/s redis=redis://localhost:1"]


async def test_the_ready_line_tells_where_the_metrics_are() -> None:
    fake = FakeSupervisor()
    fake.metrics_address = "127.0.0.1:2"
    (line,) = await serve_and(send(signal.SIGTERM), fake)
    assert line.endswith(" redis=redis://localhost:1 metrics=127.0.0.1:2")


async def test_a_hangup_reloads_and_does_not_end_it() -> None:
    fake = FakeSupervisor()
    await serve_and(send(signal.SIGHUP), fake)
    assert fake.events == ["open", "reload", "drain 7", "closed"]


async def test_a_hangup_before_it_is_ready_changes_nothing() -> None:
    fake = FakeSupervisor(*[StoreUnreachableError("there", "refused")] * 1000)

    async def interrupt() -> None:
        await fake.opening.wait()
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            await serve(
                Settings(wait_for_redis=True), open_supervisor=fake.open, announce=pytest.fail
            )
    assert set(fake.events) == {"open"}


async def test_a_second_signal_stops_it_at_once() -> None:
    fake = FakeSupervisor()
    fake.drains = trio.Event()

    async def insist() -> None:
        await fake.draining.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(insist)
        with pytest.raises(ExceptionGroup) as caught:
            await serve_and(send(signal.SIGTERM), fake)
    assert [type(leaf) for leaf in leaves(caught.value)] == [StoppedAtOnceError]
    assert exit_of(caught.value, Settings())[0] == Exit.FAILED
    assert fake.events == ["open", "drain 7", "closed"]


async def test_a_signal_before_it_is_ready_ends_the_attempt() -> None:
    fake = FakeSupervisor(*[StoreUnreachableError("there", "refused")] * 1000)

    async def interrupt() -> None:
        await fake.opening.wait()
        os.kill(os.getpid(), signal.SIGINT)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            await serve(
                Settings(wait_for_redis=True), open_supervisor=fake.open, announce=pytest.fail
            )


async def test_redis_may_be_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    fake = FakeSupervisor(
        StoreUnreachableError("there", "refused"),
        ExceptionGroup("nursery", [StoreUnreachableError("there", "refused")]),
        OwnedElsewhereError("process 1 on another-host"),
    )
    await serve_and(send(signal.SIGTERM), fake, Settings(wait_for_redis=True))
    assert fake.events[:4] == ["open", "open", "open", "open"]


@pytest.mark.parametrize("error", [StoreRefusesError, StoreTlsError, NotRedisError])
async def test_a_redis_that_refuses_is_not_waited_for(error: type[StoreUnreachableError]) -> None:
    fake = FakeSupervisor(error("redis://there:1", "WRONGPASS"))
    with pytest.raises(ExceptionGroup) as caught:
        await serve_and(pytest.fail, fake, Settings(wait_for_redis=True))
    status, text = exit_of(caught.value, Settings())
    assert status == Exit.REFUSED
    assert text is not None
    assert "redis://there:1" in text
    assert "WRONGPASS" in text
    assert error.advice in text
    assert StoreUnreachableError.advice not in text


@pytest.mark.parametrize("wait_for_redis", [False, True])
async def test_only_an_unreachable_redis_is_waited_for(wait_for_redis: bool) -> None:
    fake = FakeSupervisor(UnsafeStoreError("no append-only file"))
    with pytest.raises(ExceptionGroup) as caught:
        await serve_and(pytest.fail, fake, Settings(wait_for_redis=wait_for_redis))
    assert exit_of(caught.value, Settings()) == (Exit.REFUSED, "no append-only file")


async def test_an_address_in_use_is_named() -> None:
    in_use = CannotListenError("127.0.0.1:4321", OSError(98, "Address already in use"))
    fake = FakeSupervisor(ExceptionGroup("nursery", [in_use]))
    with pytest.raises(ExceptionGroup) as caught:
        await serve_and(pytest.fail, fake, Settings())
    assert exit_of(caught.value, Settings()) == (
        Exit.REFUSED,
        "cannot listen on 127.0.0.1:4321: Address already in use",
    )


async def test_a_fenced_server_says_so_by_its_status() -> None:
    fake = FakeSupervisor()
    with pytest.raises(ExceptionGroup) as caught:
        await serve_and(fake.fails.set, fake)
    assert exit_of(caught.value, Settings()) == (Exit.FENCED, "epoch 2")
    assert fake.events == ["open", "closed"]


async def test_an_error_nobody_foresaw_is_left_to_the_log() -> None:
    fake = FakeSupervisor()
    fake.failure = ZeroDivisionError()
    with pytest.raises(ExceptionGroup) as caught:
        await serve_and(fake.fails.set, fake)
    assert exit_of(caught.value, Settings()) == (Exit.FAILED, None)


async def test_the_embedded_store_is_there_before_the_supervisor_and_after_it(
    tmp_path: Path,
) -> None:
    fake = FakeSupervisor()
    seen: list[bool] = []

    def look_and_stop() -> None:
        assert fake.connector is not None
        seen.append(Path(fake.connector.address.removeprefix("unix://")).exists())
        os.kill(os.getpid(), signal.SIGTERM)

    lines = await serve_and(look_and_stop, fake, Settings(embedded=True, data_dir=tmp_path))
    assert seen == [True]
    assert lines[0].startswith("ready address=127.0.0.1:1,unix:/tmp/s redis=unix:///")
    assert fake.events == ["open", "drain 7", "closed"]
    assert b"ready to exit" in (tmp_path / "valkey.log").read_bytes()


def test_an_unreachable_redis_is_told_with_its_address_and_remedies() -> None:
    status, text = exit_of(StoreUnreachableError("redis://there:1", "refused"), Settings())
    assert status == Exit.REFUSED
    assert text is not None
    for part in ("redis://there:1", "refused", "REDIS_ADDR", "--embedded", "--wait-for-redis"):
        assert part in text


def test_take_over_is_offered_for_a_redis_and_not_for_a_data_directory() -> None:
    error = OwnedElsewhereError("process 1")
    assert "--take-over" in str(exit_of(error, Settings())[1])
    assert "--wait-for-redis" in str(exit_of(error, Settings())[1])
    assert "--take-over" not in str(exit_of(error, Settings(embedded=True))[1])


def test_being_fenced_is_reported_before_the_errors_it_caused() -> None:
    error = ExceptionGroup("both", [ValueError(), ExceptionGroup("in", [FencedError()])])
    assert exit_of(error, Settings()) == (
        Exit.FENCED,
        "another server has taken over the store",
    )


def test_a_listener_error_is_a_configuration_error() -> None:
    assert issubclass(CannotListenError, ConfigurationError)
