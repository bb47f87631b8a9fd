"""Which web requests are answered: hosts on loopback, origins, sites."""

from __future__ import annotations

import pytest

from dbos_actors.rpc.connect.origins import (
    OriginError,
    WebPolicy,
    cors_fields,
    host_problem,
    origin_problem,
    parse_origin,
    preflight_fields,
)

CLOSED = WebPolicy()
OPEN = WebPolicy.of(hosts=["Console.Example.net"], origins=["https://Console.example.net:443/"])


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:50051",
        b"LOCALHOST:1",
        b"a.localhost",
        b"127.0.0.1:50051",
        b"127.1.2.3",
        b"[::1]:50051",
        b"[::1]",
        b"192.0.2.7:1",
        b"localhost.:1",
    ],
)
def test_names_that_nobody_else_can_own_are_answered_on_loopback(host: bytes) -> None:
    assert host_problem(CLOSED, {b":authority": host}, is_loopback=True) == ""


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:50051",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example",
        b"localhost:50051@evil.example",
        b"",
        b"[::1].evil.example",
        b"notlocalhost",
        b"127.0.0.1:99999999",
        b"\xff",
    ],
)
def test_a_rebound_name_is_refused_on_loopback_only(host: bytes) -> None:
    assert "host" in host_problem(CLOSED, {b":authority": host}, is_loopback=True) or not host
    if host:
        assert host_problem(CLOSED, {b"host": host}, is_loopback=True)
    assert host_problem(CLOSED, {b":authority": host}, is_loopback=False) == ""
    anybody = WebPolicy.of(hosts=["*"])
    assert host_problem(anybody, {b":authority": host}, is_loopback=True) == ""


def test_a_host_that_the_server_was_told_of_is_answered() -> None:
    fields = {b":authority": b"console.example.net:8443"}
    assert host_problem(OPEN, fields, is_loopback=True) == ""
    assert host_problem(CLOSED, fields, is_loopback=True)


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        (b"http://localhost:50051", b"localhost:50051", True),
        (b"https://a.example", b"a.example", True),
        (b"http://localhost:3000", b"localhost:50051", False),
        (b"http://localhost", b"localhost:50051", False),
        (b"http://evil.example", b"localhost:50051", False),
        (b"null", b"localhost:50051", False),
        (b"null", b"", False),
        (b"", b"", False),
        (b"file://", b"", False),
        (b"chrome-extension://localhost:50051", b"localhost:50051", False),
    ],
)
def test_only_pages_of_the_server_itself_may_call_it(origin: bytes, host: bytes, own: bool) -> None:
    fields = {b"origin": origin, b":authority": host}
    assert (origin_problem(CLOSED, fields) == "") is own
    assert cors_fields(CLOSED, fields) == []
    assert preflight_fields(CLOSED, fields) == []


@pytest.mark.parametrize(
    ("site", "is_answered"),
    [
        (None, True),
        (b"same-origin", True),
        (b"none", True),
        (b"same-site", False),
        (b"cross-site", False),
        (b"?", False),
    ],
)
def test_an_image_or_script_of_another_site_gets_nothing(
    site: bytes | None, is_answered: bool
) -> None:
    fields = {b":authority": b"localhost"} | ({} if site is None else {b"sec-fetch-site": site})
    assert (origin_problem(CLOSED, fields) == "") is is_answered


def test_pages_of_an_origin_that_the_server_was_told_of_may_read_the_answers() -> None:
    fields = {
        b"origin": b"https://console.example.net",
        b":authority": b"localhost",
        b"access-control-request-headers": b"content-type, connect-protocol-version",
        b"access-control-request-private-network": b"true",
    }
    assert origin_problem(OPEN, fields) == ""
    found = dict(preflight_fields(OPEN, fields))
    assert found[b"access-control-allow-origin"] == b"https://console.example.net"
    assert found[b"access-control-allow-headers"] == b"content-type, connect-protocol-version"
    assert found[b"access-control-allow-private-network"] == b"true"
    assert found[b"vary"] == b"origin"
    assert b"access-control-allow-credentials" not in found
    fields[b"access-control-request-headers"] = b"a\nb"
    assert b"access-control-allow-headers" not in dict(preflight_fields(OPEN, fields))
    for other in (b"http://console.example.net", b"https://console.example.net.evil.example"):
        assert origin_problem(OPEN, {b"origin": other, b":authority": b"localhost"})


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://A.example", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80/", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://localhost:3000", "http://localhost:3000"),
    ],
)
def test_an_origin_is_written_as_browsers_do(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text", ["", "*", "null", "a.example", "ftp://a", "https://a/b", "https://*.a", "https://a:x"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(OriginError):
        parse_origin(text)
