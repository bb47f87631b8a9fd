"""Messages as JSON: protobuf's own mapping, over the descriptors of the messages' classes.

Fields that the contract does not have are ignored, as in the binary form: a client that was made
for a later contract can call an earlier server.

The library reads and writes JSON in Python, at one or two microseconds for each value, while
everything else waits. So `JSON_VALUES_MAX` bounds what one request can cost.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from grpclib.const import Status
from grpclib.exceptions import GRPCError

JSON_VALUES_MAX: Final = 20_000
"""Of one request: some 50 ms. Estimated by its commas, colons and brackets, also those in texts.
Larger requests are for the binary form, which has no such limit."""

_STRUCTURE: Final = (b",", b":", b"[", b"{")
_PROBLEM_CHARACTERS_MAX: Final = 500
_TOO_COMPLEX: Final = (
    f"JSON with more than {JSON_VALUES_MAX} values: send this request as application/proto"
)


def proto_decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A function from serialised messages to messages; it raises `grpclib.GRPCError`."""

    def checked(data: bytes) -> Any:
        try:
            return decode(data)
        except Exception as error:
            text = "the request message cannot be decoded"
            raise GRPCError(Status.INVALID_ARGUMENT, text) from error

    return checked


def json_decoder(message_type: Any) -> Callable[[bytes], Any]:
    """A function from JSON to messages of a type; it raises `grpclib.GRPCError`."""
    pool = message_type.DESCRIPTOR.file.pool
    # google.protobuf.StringValue and some others have JSON of other kinds.
    is_object = not message_type.DESCRIPTOR.full_name.startswith("google.protobuf.")

    def parse(data: bytes) -> Any:
        found = json.loads(data)
        if is_object and not isinstance(found, dict):
            raise ParseError("it must be an object")
        return ParseDict(found, message_type(), ignore_unknown_fields=True, descriptor_pool=pool)

    def decode(data: bytes) -> Any:
        if sum([data.count(mark) for mark in _STRUCTURE]) > JSON_VALUES_MAX:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, _TOO_COMPLEX)
        try:
            return parse(data)
        except (ParseError, ValueError, RecursionError, TypeError, AttributeError) as error:
            text = f"the request cannot be read as JSON: {error}"
            raise GRPCError(Status.INVALID_ARGUMENT, text[:_PROBLEM_CHARACTERS_MAX]) from error

    return decode


def json_encoder(message_type: Any) -> Callable[[bytes], bytes]:
    """A function from a serialised message of a type to its JSON."""
    pool = message_type.DESCRIPTOR.file.pool

    def encode(data: bytes) -> bytes:
        found = MessageToDict(message_type.FromString(data), descriptor_pool=pool)
        return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "replace"
        )

    return encode
