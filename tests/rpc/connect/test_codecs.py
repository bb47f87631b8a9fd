"""Messages as JSON, over descriptors of a pool of their own."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.api import messages
from dbos_actors.rpc.connect.codecs import (
    JSON_VALUES_MAX,
    json_decoder,
    json_encoder,
    proto_decoder,
)

decode = json_decoder(messages.StoreResultRequest)
encode = json_encoder(messages.StoreResultRequest)


def refusal(data: bytes, decoder: Any = decode) -> GRPCError:
    with pytest.raises(GRPCError) as refused:
        decoder(data)
    return refused.value


@given(st.text(max_size=20).filter(lambda text: text.isprintable()), st.binary(max_size=50))
def test_a_message_comes_back(name: str, data: bytes) -> None:
    request = messages.StoreResultRequest(result={"id": name, "agent_id": name, "data": data})
    assert decode(encode(request.SerializeToString())) == request


def test_names_are_written_in_either_way_and_unknown_ones_are_ignored() -> None:
    request = decode(b'{"result": {"agentId": "a", "module_name": "m", "later": 1}, "x": []}')
    assert (request.result.agent_id, request.result.module_name) == ("a", "m")
    assert json.loads(encode(request.SerializeToString())) == {
        "result": {"agentId": "a", "moduleName": "m"}
    }


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "JSON"),
        (b"null", "JSON"),
        (b"1", "JSON"),
        (b'"x"', "JSON"),
        (b"\xff{}", "JSON"),
        (b'{"result": 5}', "result"),
        (b'{"result": {"data": "not base64!"}}', "data"),
        (b'{"result": {"id": 5}}', "id"),
        (b'{"result": {"id": "\\ud800"}}', "id"),
        (b'{"result": {"receivedAt": "soon"}}', "receivedAt"),
        (b"[" * 19_000, "JSON"),
        (b'{"result":' * 9_000, "JSON"),
    ],
)
def test_what_is_not_the_json_of_its_message_is_refused_with_the_field(
    data: bytes, named: str
) -> None:
    error = refusal(data)
    assert error.status is Status.INVALID_ARGUMENT
    assert error.message is not None
    assert named in error.message
    assert len(error.message) <= 500


def test_json_that_would_take_long_is_refused_unread() -> None:
    states = b",".join([b'"x"'] * JSON_VALUES_MAX)
    decoder = json_decoder(messages.ListModuleStatesRequest)
    error = refusal(b'{"states": [' + states + b"]}", decoder)
    assert error.status is Status.RESOURCE_EXHAUSTED
    assert error.message is not None
    assert "application/proto" in error.message
    large = b'{"result": {"data": "' + b"AAAA" * 300_000 + b'"}}'
    assert len(decode(large).result.data) == 900_000


def test_a_message_whose_json_is_no_object_is_read() -> None:
    assert json_decoder(StringValue)(b'"x"').value == "x"
    assert json_encoder(StringValue)(StringValue(value="x").SerializeToString()) == b'"x"'


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for decoder in (decode, proto_decoder(messages.StoreResultRequest.FromString)):
        with suppress(GRPCError):
            decoder(data)
