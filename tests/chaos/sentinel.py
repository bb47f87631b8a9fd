"""A primary, its replica and the Sentinel that promotes the replica when the primary is gone."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
import trio

from dbos_actors.store.embedded import valkey_binary
from tests.support.valkey import ValkeyServer

NAME = "primary"
DOWN_AFTER_MS = 1_500
"""Long enough for a busy machine: a Sentinel that sees failures everywhere promotes a replica that
has nothing yet, and that is a loss no server can make good."""

START_TIMEOUT_S = 20.0
POLL_S = 0.02


class SentinelPair:
    """Two Valkeys that follow each other, watched by one Sentinel of the same program."""

    def __init__(self, **config: str | int) -> None:
        config = {"repl_diskless_sync_delay": 0, **config}
        self.servers = [ValkeyServer(tcp=True, **config).start() for _ in range(2)]
        primary, replica = self.servers
        replica.execute("REPLICAOF", "127.0.0.1", primary.port)
        self.failovers = 0
        self._directory = Path(tempfile.mkdtemp(prefix="sentinel-"))
        self._port = _free_port()
        settings = self._directory / "sentinel.conf"
        settings.write_text(
            f"port {self._port}\nbind 127.0.0.1\ndir {self._directory}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {primary.port} 1\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {NAME} 5000\n"
        )
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(valkey_binary()), str(settings), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._client = redis.Redis(port=self._port, protocol=2)
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self._knows_replica():
            if time.monotonic() > give_up_at:
                raise AssertionError(f"no replica known:\n{self.log()}")
            time.sleep(POLL_S)

    @property
    def primary(self) -> ValkeyServer:
        """Whom Sentinel calls the primary now."""
        port = self._primary_port()
        return next(server for server in self.servers if server.port == port)

    async def follow(self, moved: Callable[[str], None]) -> None:
        """Call ``moved`` with the primary's address whenever it is another one; until cancelled."""
        known = 0
        while True:
            port = await trio.to_thread.run_sync(self._primary_port)
            if port != known:
                self.failovers += known != 0
                known = port
                moved(f"127.0.0.1:{port}")
            await trio.sleep(POLL_S)

    def wait_in_step(self) -> None:
        """Wait until the other one is a replica that follows the primary."""
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(redis.RedisError):
                info: Any = self.primary.execute("INFO", "replication")
                follows = info["connected_slaves"] and info["slave0"]["state"] == "online"
                if follows and self._knows_replica():
                    return
            if time.monotonic() > give_up_at:
                raise AssertionError(f"the replica does not follow:\n{self.log()}")
            time.sleep(POLL_S)

    def fail_over(self) -> None:
        """Have Sentinel promote the replica though the primary is well."""
        client: Any = self._client
        client.execute_command("SENTINEL", "FAILOVER", NAME)

    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    def close(self) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()
        for server in self.servers:
            server.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _primary_port(self) -> int:
        client: Any = self._client
        return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])

    def _knows_replica(self) -> bool:
        client: Any = self._client
        try:
            replicas = client.execute_command("SENTINEL", "REPLICAS", NAME)
        except redis.ConnectionError:
            return False
        states = [_pairs(replica) for replica in replicas]
        return any(
            state.get("master-link-status") == "ok" and "down" not in state.get("flags", "")
            for state in states
        )


def _pairs(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):
        return {_text(name): _text(value) for name, value in reply.items()}
    return {_text(n): _text(v) for n, v in zip(reply[::2], reply[1::2], strict=True)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
