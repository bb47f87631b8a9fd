"""Protobuf bytes for attacks: messages of a type, bytes that nearly are, and bytes that are not.

Built from the contract's own descriptors, so that a new field or method is attacked without
anybody's doing.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from dbos_actors.api import messages

SERVICE: Final = messages.DESCRIPTOR.services_by_name["DBOS"]

UNARY: Final = tuple(
    method.name
    for method in SERVICE.methods
    if not (method.client_streaming or method.server_streaming)
)

ODD_CHARACTERS: Final = (
    *(chr(code) for code in range(0x20)),
    *"\x7f\x80\x85\xa0\xad%{}:*?[]\\/'\"<>| .,;&=#@!~^`+-_aZ0",
    "\u200b\u200f\u2028\ufeff\ufffd\uffff\u00e9e\u0301\u0130\u4e2d",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0010ffff",
)
"""What keys, logs, headers and JSON might take for something else."""

INTEGERS: Final = (0, 1, -1, 2, 2**31 - 1, -(2**31), 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 100)

STATES: Final = ("created", "started", "running", "completed", "error", "failed", "stopped", "")

_INT32: Final = FieldDescriptor.TYPE_INT32
_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)


def texts() -> st.SearchStrategy[str]:
    """Ids and names, few enough that calls meet, and odd ones."""
    return st.one_of(
        st.sampled_from(["a", "b", "ping", "r1", *STATES]),
        st.lists(st.sampled_from(ODD_CHARACTERS), max_size=6).map("".join),
        st.text(max_size=20),
        st.integers(250, 260).map(lambda size: "x" * size),
        st.integers(60, 70).map(lambda size: "\U0001f600" * size),
    )


def message_of(descriptor: Descriptor, depth: int = 3) -> st.SearchStrategy[Any]:
    """Valid messages, most fields set."""
    fields = {field.name: _values(field, depth) for field in descriptor.fields}
    prototype = getattr(messages, descriptor.name)
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: prototype(**values))


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(texts(), texts(), max_size=4)
    one = _one(field, depth)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _one(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return message_of(field.message_type, depth - 1)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=200)
        return st.sampled_from(STATES) | texts() if field.name == "state" else texts()
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == _INT32:
        return st.sampled_from([n for n in INTEGERS if -(2**31) <= n < 2**31])
    return st.sampled_from(INTEGERS)


# ------------------------------------------------------------- nearly messages


def varint(value: int) -> bytes:
    """Of a non-negative number."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, kind: int, payload: bytes, number_value: int) -> bytes:
    tag = varint(number << 3 | kind)
    match kind:
        case 0:
            return tag + varint(number_value)
        case 1:
            return tag + payload[:8].ljust(8, b"\0")
        case 2:
            return tag + varint(len(payload)) + payload
        case 5:
            return tag + payload[:4].ljust(4, b"\0")
        case _:
            return tag + payload


def wires() -> st.SearchStrategy[bytes]:
    """Fields of any number and kind: known ones of another kind, unknown ones, groups."""
    payload = st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a" * 300, b"\x0a\x01a"]
        ),
        st.deferred(wires),
    )
    one = st.builds(
        _field,
        st.sampled_from([0, 1, 2, 3, 4, 5, 7, 10, 11, 20, 21, 22, 100, 2**29 - 1]),
        st.integers(0, 7),
        payload,
        st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]),
    )
    return st.lists(one, max_size=6).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    """A few changes to well-formed bytes."""
    data = bytearray(draw(source))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0 if position < len(data):
                data[position] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del data[position : position + draw(st.integers(1, 8))]
            case 2:
                data[position:position] = draw(st.binary(min_size=1, max_size=8))
            case _:
                data[position:position] = data[position : position + draw(st.integers(1, 20))]
    return bytes(data)


def requests() -> st.SearchStrategy[tuple[str, bytes]]:
    """A unary method and what it is sent."""

    def of(method: str) -> st.SearchStrategy[tuple[str, bytes]]:
        whole = message_of(SERVICE.methods_by_name[method].input_type).map(
            lambda message: bytes(message.SerializeToString())
        )
        return st.tuples(
            st.just(method), st.one_of(whole, whole, mutated(whole), wires(), st.binary())
        )

    return st.sampled_from(UNARY).flatmap(of)


def is_decodable(method: str, body: bytes) -> bool:
    """Whether these bytes are a request at all."""
    request_type = getattr(messages, SERVICE.methods_by_name[method].input_type.name)
    try:
        request_type.FromString(body)
    except Exception:  # noqa: BLE001 - DecodeError's class is the codec's own affair
        return False
    return True
