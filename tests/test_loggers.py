"""What a program that uses the library, and has set up nothing, sees of its log lines."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

import dbos_actors
from dbos_actors.loggers import get_logger

PACKAGE = Path(dbos_actors.__file__).parent

PROGRAM = """
import sys
import trio
from grpclib.const import Cardinality, Handler, Status
from dbos_actors.rpc.client.channel import Channel
from dbos_actors.rpc.server.listeners import bound_address, open_listeners
from dbos_actors.rpc.server.server import Server


class Message:
    @staticmethod
    def FromString(data):
        return data


class Service:
    async def call(self, stream):
        password = "hunter2"
        await stream.recv_message()
        raise KeyError("nothing here")

    def __mapping__(self):
        return {"/a.B/C": Handler(self.call, Cardinality.UNARY_UNARY, Message, Message)}


async def main():
    server = Server(unary={}, services=[Service()], status_of=lambda error: (Status.UNKNOWN, ""))
    async with trio.open_nursery() as nursery:
        listeners = await open_listeners("127.0.0.1:0")
        await nursery.start(server.serve, listeners)
        port = int(bound_address(listeners[0]).rpartition(":")[2])
        async with Channel("127.0.0.1", port) as channel:
            try:
                await channel.unary("/a.B/C", b"")
            except Exception as error:
                print("client:", error.status.name)
        nursery.cancel_scope.cancel()


trio.run(main)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_program_that_set_up_nothing_sees_errors_on_stderr_without_local_variables() -> None:
    done = run(PROGRAM)
    assert done.stdout == "client: INTERNAL\n"
    assert done.stderr.startswith("handler failed path='/a.B/C' peer='ipv4:127.0.0.1:")
    assert "KeyError: 'nothing here'" in done.stderr
    assert "password = " in PROGRAM
    assert len(done.stderr.splitlines()) < 20  # the lines of code on the way, and no values
    assert "hunter2" not in done.stderr.replace('password = "hunter2"', "")


def test_a_program_that_set_up_logging_gets_records_with_names_and_levels() -> None:
    set_up = (
        "import logging\n"
        "logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s %(message)s')\n"
    )
    done = run(set_up + PROGRAM)
    assert "ERROR dbos_actors.rpc.server.stream handler failed path=" in done.stderr


def test_a_program_that_set_up_structlog_gets_events() -> None:
    set_up = (
        "import structlog\n"
        "structlog.configure(processors=[structlog.processors.add_log_level,\n"
        "    lambda _l, _m, e: {**e, 'exc_info': bool(e.get('exc_info'))},\n"
        "    structlog.processors.JSONRenderer(sort_keys=True)])\n"
    )
    done = run(set_up + PROGRAM)
    assert '{"event": "handler failed", "exc_info": true, "level": "error", ' in done.stdout
    assert done.stderr == ""


@pytest.fixture
def _unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structlog, "is_configured", lambda: False)


@pytest.mark.usefixtures("_unconfigured")
def test_events_become_records(caplog: pytest.LogCaptureFixture) -> None:
    logger = get_logger("dbos_actors.some.module")
    with caplog.at_level(logging.INFO):
        logger.debug("too little", a=1)
        logger.info("an event", agent="a b", count=3, percent="100 %s")
        try:
            int("no")
        except ValueError as error:
            logger.exception("it failed")
            logger.warning("it failed", exc_info=error)
    first, *failures = caplog.records
    assert first.getMessage() == "an event agent='a b' count=3 percent='100 %s'"
    assert (first.name, first.levelname) == ("dbos_actors.some.module", "INFO")
    assert len(failures) == 2
    assert all(one.exc_info is not None and one.exc_info[0] is ValueError for one in failures)


def test_a_logger_follows_structlog_as_soon_as_it_is_set_up() -> None:
    logger = get_logger("dbos_actors.some.module")
    with capture_logs() as logs:
        logger.warning("an event", count=3)
    assert logs == [{"event": "an event", "count": 3, "log_level": "warning"}]


def test_every_module_has_its_logger_from_here() -> None:
    direct = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if re.search(r"structlog\.get_logger|getLogger\(", path.read_text())
    ]
    assert direct == ["loggers.py"]
