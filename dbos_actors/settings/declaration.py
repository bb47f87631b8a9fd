"""Every setting of the service: variable, unit, default, limits and the part that uses it.

Settings come from environment variables, and from the keyword arguments of
`Settings`, which win (the command line passes its options so). Field names carry
the unit last; the variables are what operators type. ``docs/settings.md`` is
made from this module by `reference.markdown`, so a setting is documented where it is
declared, and nowhere else.

Durations are numbers of seconds or ``90s``, ``5m``, ``24h``, ``7d``; sizes are
numbers of bytes or ``64KiB``, ``8MiB``, ``2GiB``. An empty variable counts as unset.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator
from pydantic_settings import SettingsConfigDict

from dbos_actors.settings.field import setting
from dbos_actors.settings.lists import (
    checked_addresses,
    checked_hosts,
    checked_origins,
    split_list,
)
from dbos_actors.settings.quantities import Duration, Size
from dbos_actors.settings.quotas import QuotaSettings


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class Settings(QuotaSettings):
    """The settings of one server.

    ``Settings()`` reads the environment; keyword arguments override it. Use
    `load_settings` for errors that name the variable.
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="forbid", frozen=True, populate_by_name=True
    )

    # ------------------------------------------------------------- listening

    host: str = setting(
        "DBOS_HOST",
        "127.0.0.1",
        unit="address",
        used_by="server",
        min_length=1,
        text="Address to listen on for gRPC and metrics. `0.0.0.0` or `::` in a container.",
    )
    port: int = setting(
        "PORT",
        50051,
        unit="port",
        used_by="server",
        ge=0,
        le=65535,
        text="TCP port for gRPC. 0 takes any free one; the `ready` line tells which.",
    )
    listen: Annotated[str, AfterValidator(checked_addresses)] = setting(
        "DBOS_LISTEN",
        "",
        unit="addresses",
        used_by="server",
        default_text="`DBOS_HOST:PORT`",
        text="Comma-separated `HOST:PORT`, `[IPV6]:PORT` and `unix:PATH`, instead of the above.",
    )
    tls_cert: Path | None = setting(
        "DBOS_TLS_CERT",
        unit="file",
        used_by="rpc",
        text="PEM certificate chain; with it the TCP listeners speak TLS only.",
    )
    tls_key: Path | None = setting(
        "DBOS_TLS_KEY", unit="file", used_by="rpc", text="PEM private key of the certificate."
    )
    tls_client_ca: Path | None = setting(
        "DBOS_TLS_CLIENT_CA",
        unit="file",
        used_by="rpc",
        text="PEM authorities; with it every client must present a certificate of one of them.",
    )
    auth_token_file: Path | None = setting(
        "DBOS_AUTH_TOKEN_FILE",
        unit="file",
        used_by="service",
        text="Tokens and certificates with their roles, made by `dbos-actors token`; with it every "
        "call needs one. Changes of the file take effect at once: the calls of a token that was "
        "removed end, and an empty file revokes all tokens.",
    )
    web_hosts: Annotated[str, AfterValidator(checked_hosts)] = setting(
        "DBOS_WEB_HOSTS",
        "",
        unit="host names",
        used_by="rpc",
        text="Comma-separated host names that web requests to a loopback address may carry, "
        "besides `localhost` and IP addresses: for example the name that a proxy on this machine "
        "passes on. `*` allows every name, also one that a hostile page has made to point here.",
    )
    web_origins: Annotated[str, AfterValidator(checked_origins)] = setting(
        "DBOS_WEB_ORIGINS",
        "",
        unit="origins",
        used_by="rpc",
        text="Comma-separated origins, as `https://console.example.net`, whose pages may call this "
        "server from a browser (CORS). Pages of its own may; those of others are refused.",
    )
    metrics_port: int | None = setting(
        "DBOS_METRICS_PORT",
        unit="port",
        used_by="server",
        ge=0,
        le=65535,
        text="TCP port of the pages `/metrics` (Prometheus), `/healthz` and `/readyz`, on "
        "`DBOS_HOST`. 0 takes any free one; the `ready` line tells which.",
    )
    drain_grace_s: Duration = setting(
        "DBOS_DRAIN_GRACE",
        10.0,
        unit="duration",
        used_by="cli",
        text="How long stopping may take after SIGTERM or SIGINT. Running calls get 70 % of it to "
        "finish; the rest is for the last commits and the embedded store.",
    )

    # ----------------------------------------------------------------- store

    redis_addr: str = setting(
        "REDIS_ADDR",
        "localhost:6379",
        unit="address",
        used_by="store",
        min_length=1,
        text="`HOST:PORT`, or a `redis://`, `rediss://` or `unix://` URL with user, password and "
        "database. Not used with the embedded store.",
    )
    wait_for_redis: bool = setting(
        "DBOS_WAIT_FOR_REDIS",
        default=False,
        unit="boolean",
        used_by="cli",
        text="Wait at the start while Redis is unreachable or another server owns it, instead of "
        "ending with exit status 2. If that server crashed on another machine or in another "
        "container, the wait is five seconds, the length of its lease.",
    )
    require_safe_redis: bool = setting(
        "DBOS_REQUIRE_SAFE_REDIS",
        default=False,
        unit="boolean",
        used_by="store",
        text="What to do about a Redis that can lose acknowledged writes, because it has no "
        "append-only file or has an eviction policy. `true`: refuse to start on it, and refuse "
        "writes while it is set so later. `false`: warn.",
    )
    refuse_lost_commits: bool = setting(
        "DBOS_REFUSE_LOST_COMMITS",
        default=False,
        unit="boolean",
        used_by="store",
        text="What to do when Redis came back empty, or without commits that are too old to be "
        "sent again. `true`: calls end with UNAVAILABLE until a Redis with every acknowledged "
        "write is back, or the server is started again. `false`: the loss is logged and counted, "
        "and the server goes on.",
    )
    embedded: bool = setting(
        "DBOS_EMBEDDED",
        default=False,
        unit="boolean",
        used_by="cli",
        text="Start a private Valkey on `DBOS_DATA_DIR` instead of connecting to `REDIS_ADDR`.",
    )
    data_dir: Path = setting(
        "DBOS_DATA_DIR",
        Path("dbos-data"),
        unit="directory",
        used_by="store",
        text="Data of the embedded store; created if missing.",
    )
    durability: Annotated[Literal["replay", "fsync"], BeforeValidator(_lower)] = setting(
        "DBOS_DURABILITY",
        "replay",
        unit="choice",
        used_by="store",
        text="`replay`: if Redis loses its last second, the running server sends it again. "
        "`fsync`: a write is answered only when Redis has it on disk, so it survives even if "
        "server and Redis lose power at the same moment.",
    )
    commit_queue_bytes: Size = setting(
        "DBOS_COMMIT_QUEUE_BYTES",
        64 << 20,
        unit="size",
        used_by="store",
        ge=1 << 20,
        text="Writes that may wait for their commit; beyond it calls get RESOURCE_EXHAUSTED.",
    )
    replay_bytes: Size = setting(
        "DBOS_REPLAY_BYTES",
        512 << 20,
        unit="size",
        used_by="store",
        ge=16 << 20,
        text="Memory for the commits of the last five seconds. If Redis loses them, they are sent "
        "again. It limits how fast clients can write: an eighth of it at once, and about a sixth "
        "of it each second for long.",
    )
    server_id: str = setting(
        "DBOS_SERVER_ID",
        make_default=socket.gethostname,
        unit="text",
        used_by="actors",
        default_text="the host name",
        min_length=1,
        max_length=256,
        text="Name of this server in results (`dbos_server_id`).",
    )

    # ---------------------------------------------------------------- actors

    max_resident_agents: int = setting(
        "DBOS_MAX_RESIDENT_AGENTS",
        100_000,
        unit="agents",
        used_by="runtime",
        ge=1,
        text="Agents kept in memory; beyond it the least recently used idle ones leave.",
    )
    idle_passivation_s: Duration = setting(
        "DBOS_IDLE_PASSIVATION",
        300.0,
        unit="duration",
        used_by="runtime",
        ge=1,
        text="An agent without messages for this long leaves memory.",
    )
    run_cache_bytes: Size = setting(
        "DBOS_RUN_CACHE_BYTES",
        128 << 20,
        unit="size",
        used_by="actors",
        text="Memory for finished runs, over all agents, at 400 bytes beside each record; older "
        "ones are read from Redis.",
    )
    heartbeat_timeout_s: Duration = setting(
        "DBOS_HEARTBEAT_TIMEOUT",
        0.0,
        unit="duration",
        used_by="actors.agents",
        text="An agent not heard from for this long is no longer alive and its unfinished runs "
        "fail. 0 = never.",
    )
    due_tasks_lease_s: Duration = setting(
        "DBOS_DUE_TASKS_LEASE",
        0.0,
        unit="duration",
        used_by="actors.tasks",
        text="ListDueTasks also leases what it returns for this long. 0 = it only reads.",
    )
    max_attempts: int = setting(
        "DBOS_MAX_ATTEMPTS",
        5,
        unit="deliveries",
        used_by="actors.tasks",
        ge=1,
        le=1_000,
        text="Deliveries of a task before it is dead, unless the task says otherwise.",
    )

    # ---------------------------------------------------------------- limits

    max_message_bytes: Size = setting(
        "DBOS_MAX_MESSAGE_BYTES",
        4 << 20,
        unit="size",
        used_by="rpc",
        ge=64 << 10,
        le=1 << 30,
        text="Largest gRPC message, either way. Clients have a limit of their own, mostly 4 MiB.",
    )
    listing_bytes: Size = setting(
        "DBOS_LISTING_BYTES",
        64 << 20,
        unit="size",
        used_by="actors",
        ge=1 << 20,
        text="Memory for all listings that hold more than 64 KiB each. One of them may need twice "
        "`DBOS_MAX_MESSAGE_BYTES` and 2 MiB, so by default six run at once and others wait.",
    )
    max_id_bytes: Size = setting(
        "DBOS_MAX_ID_BYTES",
        256,
        unit="size",
        used_by="service",
        ge=1,
        le=(64 << 10) - 1,
        text="Largest id, module name or host name.",
    )
    max_data_bytes: Size = setting(
        "DBOS_MAX_DATA_BYTES",
        1 << 20,
        unit="size",
        used_by="service",
        ge=1,
        le=512 << 20,
        text="Largest `data` of a result or `payload` of a task.",
    )
    max_map_entries: int = setting(
        "DBOS_MAX_MAP_ENTRIES",
        256,
        unit="entries",
        used_by="service",
        ge=1,
        text="Most entries in an agent's `config` or a state's `details`.",
    )
    max_map_bytes: Size = setting(
        "DBOS_MAX_MAP_BYTES",
        64 << 10,
        unit="size",
        used_by="service",
        ge=1,
        text="Largest `config` or `details`, keys and values together.",
    )

    # ------------------------------------------------------ events, retention

    event_results: bool = setting(
        "DBOS_EVENT_RESULTS",
        default=False,
        unit="boolean",
        used_by="actors",
        text="Write an event for every result too.",
    )
    max_events: int = setting(
        "DBOS_MAX_EVENTS",
        100_000,
        unit="events",
        used_by="actors",
        ge=1,
        text="Events kept; the oldest go first.",
    )
    results_max_age_s: Duration = setting(
        "DBOS_RESULTS_MAX_AGE",
        0.0,
        unit="duration",
        used_by="actors.agents",
        text="Results older than this are deleted. 0 = never.",
    )
    results_max_bytes: Size = setting(
        "DBOS_RESULTS_MAX_BYTES",
        0,
        unit="size",
        used_by="actors.agents",
        text="Memory in Redis of all results together, with their index; beyond it the oldest are "
        "deleted. 0 = no limit.",
    )
    runs_max_age_s: Duration = setting(
        "DBOS_RUNS_MAX_AGE",
        0.0,
        unit="duration",
        used_by="actors.agents",
        text="Finished runs older than this are deleted. 0 = never.",
    )
    runs_max_bytes: Size = setting(
        "DBOS_RUNS_MAX_BYTES",
        0,
        unit="size",
        used_by="actors.agents",
        text="Memory in Redis of all finished runs together, with their indexes, as far as it can "
        "be estimated; beyond it the oldest are deleted. 0 = no limit.",
    )
    tasks_max_age_s: Duration = setting(
        "DBOS_TASKS_MAX_AGE",
        86400.0,
        unit="duration",
        used_by="actors.tasks",
        text="Completed and cancelled tasks older than this are deleted. 0 = never. While a "
        "completed task is kept, a late copy of its ScheduleTask changes nothing.",
    )
    completed_tasks_max: int = setting(
        "DBOS_COMPLETED_TASKS_MAX",
        1_000_000,
        unit="tasks",
        used_by="actors.tasks",
        ge=1,
        text="Completed and cancelled tasks kept. If there are more, the oldest are deleted before "
        "`DBOS_TASKS_MAX_AGE`; the metric `dbos_tasks_retired_early` and a log line say so. At "
        "1,000 tasks a second the default is reached in 17 minutes. Each task takes 0.3 KB of the "
        "server's memory.",
    )
    dead_tasks_max_age_s: Duration = setting(
        "DBOS_DEAD_TASKS_MAX_AGE",
        30 * 86400.0,
        unit="duration",
        used_by="actors.tasks",
        text="Tasks that have been dead for longer are deleted. 0 = never.",
    )
    dead_tasks_max: int = setting(
        "DBOS_DEAD_TASKS_MAX",
        1_000_000,
        unit="tasks",
        used_by="actors.tasks",
        ge=1,
        text="Dead tasks kept. If there are more, those that died first are deleted, and the same "
        "metric and log line say so.",
    )
    tasks_max: int = setting(
        "DBOS_TASKS_MAX",
        5_000_000,
        unit="tasks",
        used_by="actors.tasks",
        ge=1,
        text="Tasks of all states together; beyond it a new one gets RESOURCE_EXHAUSTED. It must "
        "be more than `DBOS_COMPLETED_TASKS_MAX` and `DBOS_DEAD_TASKS_MAX` together, so that tasks "
        "that have ended never keep a new one out.",
    )

    # ------------------------------------------------------------------ logs

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = (
        setting(
            "DBOS_LOG_LEVEL",
            "info",
            unit="choice",
            used_by="cli",
            text="Least serious log lines to write: `debug`, `info`, `warning` or `error`.",
        )
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = setting(
        "DBOS_LOG_FORMAT",
        "text",
        unit="choice",
        used_by="cli",
        text="Logs on stderr as `text`, or as one `json` object a line.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("DBOS_TLS_CERT and DBOS_TLS_KEY must be set together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("DBOS_TLS_CLIENT_CA needs DBOS_TLS_CERT and DBOS_TLS_KEY")
        if self.max_data_bytes >= self.max_message_bytes:
            raise ValueError("DBOS_MAX_DATA_BYTES must be less than DBOS_MAX_MESSAGE_BYTES")
        if self.completed_tasks_max + self.dead_tasks_max >= self.tasks_max:
            raise ValueError(
                "DBOS_COMPLETED_TASKS_MAX and DBOS_DEAD_TASKS_MAX together must be less than "
                "DBOS_TASKS_MAX"
            )
        return self

    @property
    def listen_addresses(self) -> list[str]:
        """What to listen on: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``."""
        if self.listen:
            return split_list(self.listen)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return [f"{host}:{self.port}"]
