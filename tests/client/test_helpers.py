"""What the SDK offers above single calls, on asyncio and on Trio, against a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import anyio
import pytest

from dbos_actors.client import (
    Agent,
    CallError,
    ConnectionLostError,
    DbosStub,
    DeadlineError,
    FieldError,
    GetAgentRequest,
    LeaseTasksRequest,
    ListModuleStatesRequest,
    ListResultsRequest,
    MeasurementResult,
    ModuleState,
    NoServerError,
    RefusedError,
    RegisterAgentRequest,
    Rejected,
    SetModuleStateRequest,
    Status,
    StoreResultRequest,
    UnavailableError,
    pages,
    wait_for_run,
    writer,
)
from dbos_actors.store import connector_for
from tests.client.conftest import RunWithStub
from tests.client.stub_calls import schedule, until
from tests.support.servers import ServerThread
from tests.support.stalling import StallingConnector
from tests.support.valkey import ValkeyServer


def result(number: int, **fields: Any) -> MeasurementResult:
    fields = {"agent_id": "a", "module_name": "ping", "data": b"x", **fields}
    return MeasurementResult(id=f"r{number}", **fields)


# -------------------------------------------------------------------------------- pages


def test_listings_are_read_to_their_ends(server: ServerThread, run_with_stub: RunWithStub) -> None:
    async def body(stub: DbosStub) -> None:
        ids = [f"a{number}" for number in range(7)]
        for agent_id in ids:
            await stub.register_agent(RegisterAgentRequest(agent=Agent(id=agent_id)))
        assert [agent.id async for agent in pages.agents(stub, page_size=3)] == ids
        for number in range(7):
            await stub.store_result(StoreResultRequest(result=result(number)))
        request = ListResultsRequest(agent_id="a")
        found = [one.id async for one in pages.results(stub, request, page_size=2)]
        assert sorted(found) == [f"r{number}" for number in range(7)]
        assert request == ListResultsRequest(agent_id="a")
        await schedule(stub, "t1", "t2", "t3")
        assert [task.id async for task in pages.tasks(stub, page_size=2)] == ["t1", "t2", "t3"]
        events = [event async for event in pages.events(stub, page_size=2)]
        assert len(events) == len([event async for event in pages.events(stub)]) > 2
        with pytest.raises(RefusedError, match="agent_id is required"):
            [one async for one in pages.runs(stub, ListModuleStatesRequest())]

    run_with_stub(server.address, body)


# ------------------------------------------------------------------------------- errors


def test_a_wrong_type_in_a_field_is_named(server: ServerThread, run_with_stub: RunWithStub) -> None:
    async def body(stub: DbosStub) -> None:
        wrong: Any = "text"
        request = StoreResultRequest(result=MeasurementResult(id="a", data=wrong))
        with pytest.raises(FieldError, match=r"StoreResultRequest\.result\.data must be bytes"):
            await stub.store_result(request)
        number: Any = 5
        with pytest.raises(FieldError, match=r"GetAgentRequest\.agent_id must be str, not 5"):
            await stub.get_agent(GetAgentRequest(agent_id=number))
        async with writer(stub) as results:
            with pytest.raises(FieldError, match=r"result\.data must be bytes"):
                await results.send(MeasurementResult(id="a", data=wrong))

    run_with_stub(server.address, body)


def test_a_server_that_comes_back_is_waited_for(
    redis: ValkeyServer, run_with_stub: RunWithStub
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    started: list[ServerThread] = []

    def start() -> None:
        time.sleep(0.5)
        started.append(ServerThread(redis.address, port=port).start())

    starting = threading.Thread(target=start)

    async def body(stub: DbosStub) -> None:
        starting.start()
        assert not (await stub.get_agent(GetAgentRequest(agent_id="a"))).found
        starting.join()

    try:
        run_with_stub(f"127.0.0.1:{port}", body)
    finally:
        starting.join()
        for server in started:
            server.stop()


def test_waiting_for_a_server_ends_at_the_deadline(run_with_stub: RunWithStub) -> None:
    async def body(stub: DbosStub) -> None:
        begun = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            await stub.get_agent(GetAgentRequest(agent_id="a"))
        assert 0.2 < time.monotonic() - begun < 5
        assert caught.value.status is Status.UNAVAILABLE

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        run_with_stub(f"127.0.0.1:{nobody.getsockname()[1]}", body, timeout_s=0.5)


def test_a_deadline_and_a_status_are_of_one_family(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def waits(stub: DbosStub) -> None:
            with pytest.raises(DeadlineError):
                await stub.get_agent(GetAgentRequest(agent_id="a"))

        run_with_stub(f"127.0.0.1:{silent.getsockname()[1]}", waits, timeout_s=0.2)

    async def too_much(stub: DbosStub) -> None:
        with pytest.raises(CallError) as caught:
            await stub.store_result(StoreResultRequest(result=result(1, data=b"x" * (5 << 20))))
        assert caught.value.status is Status.RESOURCE_EXHAUSTED

    run_with_stub(server.address, too_much)


def test_a_lease_that_is_asked_for_has_a_key(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    async def body(stub: DbosStub) -> None:
        await schedule(stub, "t1", "t2")
        request = LeaseTasksRequest(agent_id="a", limit=1)
        (first,) = (await stub.lease_tasks(request)).tasks
        (second,) = (await stub.lease_tasks(request)).tasks
        assert {first.id, second.id} == {"t1", "t2"}
        assert request.request_key == ""

    run_with_stub(server.address, body)


# --------------------------------------------------------------------------------- runs


def test_a_run_is_waited_for_from_before_it_begins(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    async def body(stub: DbosStub) -> None:
        async def report() -> None:
            for state in ("created", "running", "completed"):
                await anyio.sleep(0.1)
                run = ModuleState(agent_id="a", module_name="ping", request_id="run", state=state)
                await stub.set_module_state(SetModuleStateRequest(state=run))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(report)
            assert (await wait_for_run(stub, "run")).state == "completed"
        with pytest.raises(DeadlineError, match="run 'other' has not ended within"):
            await wait_for_run(stub, "other", timeout_s=0.1)
        with pytest.raises(RefusedError, match="request_id is required"):
            await wait_for_run(stub, "")

    run_with_stub(server.address, body)


# ------------------------------------------------------------------------------- writer


def test_what_a_writer_has_taken_is_durable_at_its_end(
    server: ServerThread, run_with_stub: RunWithStub, redis: ValkeyServer
) -> None:
    async def body(stub: DbosStub) -> None:
        async with writer(stub) as results:
            for number in range(3_000):
                await results.send(result(number))
            await results.flush()
            assert (results.durable, results.pending) == (3_000, 0)
            await results.send(result(0))
        assert (results.durable, results.duplicates, results.rejected) == (3_001, 1, 0)
        request = ListResultsRequest(agent_id="a")
        assert len({one.id async for one in pages.results(stub, request)}) == 3_000

    run_with_stub(server.address, body)


def test_a_rejected_result_is_told_or_ends_the_writer(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    async def body(stub: DbosStub) -> None:
        rejected: list[Rejected] = []
        async with writer(stub, on_rejected=rejected.append) as results:
            for number in range(10):
                await results.send(result(number, module_name="" if number == 4 else "ping"))
        assert [(one.result.id, one.error) for one in rejected] == [
            ("r4", "result.module_name is required")
        ]
        assert (results.durable, results.rejected) == (9, 1)

        async def write() -> None:
            async with writer(stub) as results:
                await results.send(result(5, module_name=""))
                await results.flush()

        with pytest.raises(RefusedError, match=r"result 'r5' of agent 'a': result\.module_name"):
            await write()

    run_with_stub(server.address, body)


def test_a_writer_makes_its_program_wait(redis: ValkeyServer, run_with_stub: RunWithStub) -> None:
    connector = StallingConnector(connector_for(redis.address))
    server = ServerThread(redis.address, connector=connector).start()

    async def body(stub: DbosStub) -> None:
        async with writer(stub, pending_max=10) as results:
            await results.send(result(0))
            await results.flush()
            await anyio.to_thread.run_sync(server.run, connector.stall)
            sent = 1

            async def send() -> None:
                nonlocal sent
                for number in range(1, 50):
                    await results.send(result(number))
                    sent += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                await until(lambda: sent == 11)
                await anyio.sleep(0.1)
                assert (sent, results.pending) == (11, 10)
                await anyio.to_thread.run_sync(server.run, connector.release)
        assert results.durable == 50

    try:
        run_with_stub(server.address, body)
    finally:
        server.stop()


def test_a_writers_own_failure_is_raised_as_it_is(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    async def body(stub: DbosStub) -> None:
        async def write() -> None:
            async with writer(stub) as results:
                await results.send(result(1))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await write()

    run_with_stub(server.address, body)


def test_a_writer_without_a_valid_token_says_so(
    start_server: Callable[..., ServerThread], tmp_path: Any, run_with_stub: RunWithStub
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    server = start_server(auth_token_file=tokens)

    async def body(stub: DbosStub) -> None:
        with pytest.raises(CallError) as caught:
            async with writer(stub) as results:
                await results.send(result(1))
        assert caught.value.status is Status.UNAUTHENTICATED

    run_with_stub(server.address, body, token="wrong")


def test_a_writer_gives_up_a_connection_on_which_nothing_comes(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    with silent_at_first(server.address) as address:

        async def body(stub: DbosStub) -> None:
            async with writer(stub, stalled_s=0.3) as results:
                await results.send(result(1))
            assert results.durable == 1

        run_with_stub(address, body, connect_s_max=0.3)


@contextmanager
def silent_at_first(address: str) -> Iterator[str]:
    """A proxy that takes its first connection and says nothing there; it passes on the second."""
    host, port = address.rsplit(":", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:

        def serve() -> None:
            stack.enter_context(listening.accept()[0])
            near = stack.enter_context(listening.accept()[0])
            far = stack.enter_context(socket.create_connection((host, int(port))))
            back = threading.Thread(target=copy, args=(far, near))
            back.start()
            copy(near, far)
            back.join()

        serving = threading.Thread(target=serve)
        serving.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        serving.join()


def copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_a_lost_connection_is_what_grpclib_calls_it_too() -> None:
    from grpclib.exceptions import GRPCError, StreamTerminatedError  # noqa: PLC0415

    assert issubclass(ConnectionLostError, StreamTerminatedError)
    assert issubclass(ConnectionLostError, GRPCError)
    assert issubclass(NoServerError, OSError)
    assert issubclass(DeadlineError, TimeoutError)
