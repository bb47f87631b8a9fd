"""Heads of Connect requests: what they say, and what is wrong with them."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from contextlib import suppress
from urllib.parse import quote_from_bytes

import pytest
from grpclib.const import Status
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.connect.requests import (
    Codec,
    ConnectRequest,
    RefusedRequestError,
    is_connect_type,
    read_get,
    read_post,
    takes_gzip,
)


def post(
    content_type: bytes,
    fields: dict[str, bytes] | None = None,
    *,
    is_streaming: bool = False,
    has_json: bool = True,
) -> ConnectRequest:
    named = {name.encode(): value for name, value in (fields or {}).items()}
    named[b"content-type"] = content_type
    return read_post(named, is_streaming=is_streaming, has_json=has_json)


@pytest.mark.parametrize(
    ("content_type", "is_streaming", "codec"),
    [
        (b"application/proto", False, Codec.PROTO),
        (b"application/json", False, Codec.JSON),
        (b"application/json; charset=utf-8", False, Codec.JSON),
        (b"Application/JSON ;charset=utf-8", False, Codec.JSON),
        (b"application/connect+proto", True, Codec.PROTO),
        (b"application/connect+json", True, Codec.JSON),
    ],
)
def test_the_content_type_says_codec_and_kind(
    content_type: bytes, is_streaming: bool, codec: Codec
) -> None:
    said = read_post({b"content-type": content_type}, is_streaming=is_streaming, has_json=True)
    assert (said.codec, said.is_streaming) == (codec, is_streaming)
    assert is_connect_type(content_type)
    with pytest.raises(RefusedRequestError) as refused:
        read_post({b"content-type": content_type}, is_streaming=not is_streaming, has_json=True)
    assert refused.value.http_status == 415
    assert refused.value.status is None


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/jsonp",
        b"application/connect",
        b"text/plain; application/json",
        b"application/xml",
    ],
)
def test_what_a_form_or_a_plain_script_can_send_is_no_call(content_type: bytes) -> None:
    assert not is_connect_type(content_type)
    for is_streaming in (True, False):
        with pytest.raises(RefusedRequestError) as refused:
            post(content_type, is_streaming=is_streaming)
        assert refused.value.http_status == 415
        assert dict(refused.value.fields)[b"accept-post"].startswith(b"application/")


def test_without_descriptors_there_is_no_json() -> None:
    with pytest.raises(RefusedRequestError) as refused:
        post(b"application/json", has_json=False)
    assert refused.value.fields == [(b"accept-post", b"application/proto")]
    with pytest.raises(RefusedRequestError):
        read_get({}, b"encoding=json&message=%7B%7D", has_json=False)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"connect-timeout-ms": b"-1"}, Status.INVALID_ARGUMENT),
        ({"connect-timeout-ms": b"1.5"}, Status.INVALID_ARGUMENT),
        ({"connect-timeout-ms": b""}, Status.INVALID_ARGUMENT),
        ({"connect-timeout-ms": b"12345678901"}, Status.INVALID_ARGUMENT),
        ({"connect-timeout-ms": "\u0661".encode()}, Status.INVALID_ARGUMENT),
        ({"connect-protocol-version": b"2"}, Status.INVALID_ARGUMENT),
        ({"content-encoding": b"br"}, Status.UNIMPLEMENTED),
    ],
)
def test_a_bad_header_is_an_error_of_the_protocol(fields: dict[str, bytes], status: Status) -> None:
    with pytest.raises(RefusedRequestError) as refused:
        post(b"application/json", fields)
    assert refused.value.status is status
    assert refused.value.stream_type is None
    if "content-encoding" in fields:
        fields = {"connect-content-encoding": b"br"}
    with pytest.raises(RefusedRequestError) as refused:
        post(b"application/connect+json", fields, is_streaming=True)
    assert refused.value.status is status
    assert refused.value.stream_type == b"application/connect+json"


def test_headers_of_one_kind_mean_nothing_to_the_other() -> None:
    said = read_post(
        {b"content-type": b"application/json", b"connect-content-encoding": b"br"},
        is_streaming=False,
        has_json=True,
    )
    assert said.encoding is None
    said = read_post(
        {b"content-type": b"application/connect+json", b"content-encoding": b"br"},
        is_streaming=True,
        has_json=True,
    )
    assert said.encoding is None


def test_the_timeout_is_in_milliseconds() -> None:
    fields = {b"content-type": b"application/proto", b"connect-timeout-ms": b"1500"}
    assert read_post(fields, is_streaming=False, has_json=True).timeout_s == 1.5


@pytest.mark.parametrize(
    ("header", "takes"),
    [
        (None, False),
        (b"", False),
        (b"gzip", True),
        (b"br, GZIP;q=0.5", False),  # not as anybody writes it
        (b"br,gzip;q=0.5", True),
        (b"gzip; q=0", False),
        (b"gzip;q=0.000", False),
        (b"deflate, gzip;q=1.0, *;q=0.5", True),
        (b"identity", False),
        (b"gzipped", False),
    ],
)
def test_gzip_is_taken_by_who_names_it(header: bytes | None, takes: bool) -> None:
    assert takes_gzip(header) is takes


@given(st.binary(max_size=100), st.booleans(), st.booleans(), st.sampled_from(["json", "proto"]))
def test_the_message_of_a_get_comes_back(
    message: bytes, is_base64: bool, is_padded: bool, encoding: str
) -> None:
    if is_base64:
        text = urlsafe_b64encode(message)
        text = text if is_padded else text.rstrip(b"=")
        query = b"base64=1&message=" + quote_from_bytes(text).encode()
    else:
        query = b"message=" + quote_from_bytes(message).encode()
    said = read_get({}, b"connect=v1&encoding=" + encoding.encode() + b"&" + query, has_json=True)
    assert said.message == message
    assert said.codec is Codec(encoding.encode())


def test_plain_base64_is_read_too() -> None:
    message = bytes(range(256))
    query = b"encoding=proto&base64=1&message=" + quote_from_bytes(b64encode(message)).encode()
    assert read_get({}, query, has_json=True).message == message


@pytest.mark.parametrize(
    ("query", "http_status"),
    [
        (b"", 415),
        (b"message=x", 415),
        (b"encoding=xml&message=x", 415),
        (b"encoding=json", 200),
        (b"encoding=json&message=x&connect=v2", 200),
        (b"encoding=json&message=x&base64=yes", 200),
        (b"encoding=json&message=!&base64=1", 200),
        (b"encoding=json&message=aaaaa&base64=1", 200),
        (b"encoding=json&message=x&compression=br", 200),
        (b"encoding=json&message=x&" + b"&".join([b"a=b"] * 20), 200),
    ],
)
def test_a_bad_query_is_refused(query: bytes, http_status: int) -> None:
    with pytest.raises(RefusedRequestError) as refused:
        read_get({}, query, has_json=True)
    assert refused.value.http_status == http_status
    assert (refused.value.status is None) is (http_status == 415)


@given(st.dictionaries(st.sampled_from([b"content-type", b"connect-timeout-ms"]), st.binary()))
def test_whatever_the_head_says_it_is_read_or_refused(fields: dict[bytes, bytes]) -> None:
    for is_streaming in (True, False):
        with suppress(RefusedRequestError):
            read_post(fields, is_streaming=is_streaming, has_json=True)


@given(st.binary())
def test_whatever_the_query_is_it_is_read_or_refused(query: bytes) -> None:
    with suppress(RefusedRequestError):
        read_get({}, b"encoding=proto&" + query, has_json=True)
