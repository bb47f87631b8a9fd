"""Settings come from the environment, and a bad one is told in one clear line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import dbos_actors
from dbos_actors.errors import ConfigurationError
from dbos_actors.settings import (
    Settings,
    descriptions,
    load_settings,
    split_list,
    unknown_variables,
)


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for item in descriptions():
        monkeypatch.delenv(item.variable, raising=False)


def test_every_setting_has_a_default() -> None:
    settings = Settings()
    assert settings.listen_addresses == ["127.0.0.1:50051"]
    assert settings.redis_addr == "localhost:6379"
    assert settings.server_id == socket.gethostname()


def test_a_keyword_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1234")
    assert load_settings().port == 1234
    assert load_settings(port=0).port == 0


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBOS_METRICS_PORT", "")
    monkeypatch.setenv("DBOS_DRAIN_GRACE", "")
    assert load_settings().metrics_port is None
    assert load_settings().drain_grace_s == 10


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("1.5", 1.5), ("90s", 90), ("5m", 300), ("24h", 86400)]
)
def test_durations_are_seconds_or_carry_a_unit(
    text: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBOS_HEARTBEAT_TIMEOUT", text)
    assert load_settings().heartbeat_timeout_s == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1000", 1000), ("64KiB", 65536), ("1.5 gib", 3 << 29)]
)
def test_sizes_are_bytes_or_carry_a_unit(
    text: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBOS_RESULTS_MAX_BYTES", text)
    assert load_settings().results_max_bytes == size


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("PORT", "http", "PORT=http: must be a valid integer"),
        ("PORT", "65536", "PORT=65536: must be less than or equal to 65535"),
        ("DBOS_DURABILITY", "maybe", "DBOS_DURABILITY=maybe: must be 'replay' or 'fsync'"),
        ("DBOS_HEARTBEAT_TIMEOUT", "-1", "DBOS_HEARTBEAT_TIMEOUT=-1: must be a duration"),
        ("DBOS_HEARTBEAT_TIMEOUT", "5 weeks", "must be a duration"),
        ("DBOS_IDLE_PASSIVATION", "0", "must be greater than or equal to 1"),
        ("DBOS_RESULTS_MAX_BYTES", "0.5", "must be a size"),
        ("DBOS_RESULTS_MAX_BYTES", "1GB", "must be a size"),
        ("DBOS_LISTEN", "50051", "must be HOST:PORT or unix:PATH"),
        ("DBOS_LISTEN", "[::1]:70000", "must have a port from 0 to 65535"),
        ("DBOS_LISTEN", "::1:50051", "must have an IPv6 address in brackets"),
        ("DBOS_LISTEN", "unix:", "must name a path"),
        ("DBOS_TLS_CERT", "cert.pem", "DBOS_TLS_CERT and DBOS_TLS_KEY must be set together"),
        ("DBOS_TLS_CLIENT_CA", "ca.pem", "DBOS_TLS_CLIENT_CA needs DBOS_TLS_CERT"),
        ("DBOS_MAX_DATA_BYTES", "4MiB", "DBOS_MAX_DATA_BYTES must be less than"),
        ("DBOS_TASKS_MAX", "2000000", "DBOS_COMPLETED_TASKS_MAX and DBOS_DEAD_TASKS_MAX together"),
    ],
)
def test_a_bad_value_is_one_line_naming_variable_and_limit(
    variable: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_bad_value_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("DBOS_MAX_EVENTS", "0")
    with pytest.raises(ConfigurationError, match=r"PORT=x.*; DBOS_MAX_EVENTS=0"):
        load_settings()


def test_a_value_that_can_hold_a_password_is_never_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(redis_addr={"redis": "secret"})
    assert str(caught.value).startswith("REDIS_ADDR: ")
    assert "secret" not in str(caught.value)


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="prot"):
        load_settings(prot=1)


def test_listen_replaces_host_and_port() -> None:
    settings = Settings(listen="[::1]:0, unix:/tmp/s", port=1)
    assert settings.listen_addresses == ["[::1]:0", "unix:/tmp/s"]
    assert split_list(" a:1,,b:2 ") == ["a:1", "b:2"]


def test_an_ipv6_host_is_bracketed() -> None:
    assert Settings(host="::", port=1).listen_addresses == ["[::]:1"]


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("DBOS_HEARTBEAT_TIMOUT", "5", "DBOS_HEARTBEAT_TIMEOUT"),
        ("DBOS_REDIS_ADDR", "localhost:6379", "REDIS_ADDR"),
        ("DBOS_METRICS", "9464", "DBOS_METRICS_PORT"),
        ("DBOS_PORT", "50051", "PORT"),
        # What Kubernetes sets for a service that is named "dbos".
        ("DBOS_PORT", "tcp://10.0.0.1:50051", None),
        ("DBOS_PORT_50051_TCP_ADDR", "10.0.0.1", None),
        ("DBOS_SERVICE_HOST", "10.0.0.1", None),
        ("DBOS_SERVICE_PORT", "50051", None),
        ("PATH", "/bin", None),
        ("PORT", "1", None),
    ],
)
def test_a_misspelt_variable_is_noticed_and_a_foreign_one_is_not(
    name: str, value: str, meant: str | None
) -> None:
    assert unknown_variables({name: value}) == ([(name, meant)] if meant else [])


def test_every_setting_says_what_it_is_and_who_uses_it() -> None:
    package = Path(dbos_actors.__file__).parent
    for item in descriptions():
        assert item.unit, item.variable
        used_by = package.joinpath(*item.used_by.split("."))
        assert used_by.is_dir() or used_by.with_suffix(".py").exists(), item.variable
        assert item.text.endswith("."), item.variable
        assert item.default, item.variable


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("DBOS_WEB_ORIGINS", "https://a.example, b.example", "'b.example' must be https://HOST"),
        ("DBOS_WEB_ORIGINS", "*", "must be https://HOST"),
        ("DBOS_WEB_HOSTS", "a.example:1", "must be a host name without a port"),
        ("DBOS_WEB_HOSTS", "https://a.example", "must be a host name without a port"),
    ],
)
def test_hosts_and_origins_of_the_web_are_checked_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=problem):
        load_settings()
    monkeypatch.setenv("DBOS_WEB_ORIGINS", "https://a.example,http://[::1]:3000")
    monkeypatch.setenv("DBOS_WEB_HOSTS", "a.example, *")
    load_settings()
