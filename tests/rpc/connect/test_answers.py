"""Connect's errors and ends of streams."""

from __future__ import annotations

import json

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.const import Status
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.connect import answers
from dbos_actors.rpc.connect.codes import CODES
from dbos_actors.rpc.wire.metadata import encode_binary
from dbos_actors.rpc.wire.status import STATUS_DETAILS_KEY, details_field


def test_every_status_but_ok_has_a_code() -> None:
    assert set(CODES) == set(Status) - {Status.OK}
    assert all(400 <= http_status < 600 for _, http_status in CODES.values())


def test_details_of_an_error_are_told_with_their_type() -> None:
    detail = StringValue(value="x")
    fields = [details_field(Status.NOT_FOUND, "gone", [detail])]
    assert json.loads(answers.error_body(Status.NOT_FOUND, "gone", fields)) == {
        "code": "not_found",
        "message": "gone",
        "details": [{"type": "google.protobuf.StringValue", "value": "CgF4"}],
    }


@pytest.mark.parametrize("value", [b"!", encode_binary(b"\xff\xff")])
def test_details_that_nobody_can_read_are_left_out(value: bytes) -> None:
    body = json.loads(answers.error_body(Status.INTERNAL, None, [(STATUS_DETAILS_KEY, value)]))
    assert body == {"code": "internal"}


@given(st.text(max_size=5_000), st.sampled_from(sorted(CODES, key=lambda one: one.value)))
def test_any_message_is_told_as_json(message: str, status: Status) -> None:
    found = json.loads(answers.error_body(status, message))
    assert found["code"] == CODES[status][0]
    assert len(found.get("message", "")) <= answers.MESSAGE_CHARACTERS_MAX


def test_the_end_of_a_stream_has_its_metadata_and_its_error() -> None:
    fields = [(b"a", b"1"), (b"a", b"2"), (b"b-bin", b"AAE")]
    end = answers.end_of_stream(Status.OK, None, fields)
    assert (end[0], int.from_bytes(end[1:5], "big")) == (2, len(end) - 5)
    assert json.loads(end[5:]) == {"metadata": {"a": ["1", "2"], "b-bin": ["AAE"]}}
    end = answers.end_of_stream(Status.ABORTED, "no", [])
    assert json.loads(end[5:]) == {"error": {"code": "aborted", "message": "no"}}
    assert json.loads(answers.end_of_stream(Status.OK, "ignored")[5:]) == {}


def test_trailers_of_a_unary_call_are_headers_without_the_details() -> None:
    fields = [(b"a", b"1"), (STATUS_DETAILS_KEY, b"AA")]
    assert answers.as_trailers(fields) == [(b"trailer-a", b"1")]
