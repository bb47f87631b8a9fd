"""What the API's messages are in JSON: the fields of the contract, by their names there.

Numbers are numbers. Bytes are text if they are UTF-8 (``data``), and otherwise base64 under a name
of their own (``data_base64``), so that nothing is lost and what is text can be read.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import betterproto

Record = dict[str, Any]

M = TypeVar("M", bound=betterproto.Message)

_BASE64 = "_base64"


class RecordError(ValueError):
    """A JSON object does not describe a message; the text names the field."""


def record_of(message: betterproto.Message) -> Record:
    """A message as JSON has it, with every field, also those at their defaults."""
    record: Record = {}
    for field in _fields(message):
        value = getattr(message, field.name)
        if isinstance(value, bytes):
            try:
                record[field.name] = value.decode()
            except UnicodeDecodeError:
                record[field.name + _BASE64] = base64.b64encode(value).decode()
        elif isinstance(value, betterproto.Message):
            record[field.name] = record_of(value)
        else:
            record[field.name] = value
    return record


def message_of(kind: type[M], record: Mapping[str, Any]) -> M:
    """The inverse; fields that are left out have their defaults.

    Raises `RecordError` for a name that the message does not have, and a value of another type.
    """
    message = kind()
    defaults = {field.name: getattr(message, field.name) for field in _fields(kind)}
    for name, value in record.items():
        field_name, content = _decoded(name, value, defaults)
        if field_name not in defaults:
            raise RecordError(f"{kind.__name__} has no field {name!r}")
        _check(name, content, defaults[field_name])
        setattr(message, field_name, content)
    return message


def _fields(message: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(message)


def _decoded(name: str, value: Any, defaults: Mapping[str, Any]) -> tuple[str, Any]:
    """The field that a member of the object is about, and its value."""
    bare = name.removesuffix(_BASE64)
    if bare != name and isinstance(defaults.get(bare), bytes):
        try:
            return bare, base64.b64decode(value, validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise RecordError(f"{name} is not base64: {error}") from None
    if isinstance(defaults.get(name), bytes) and isinstance(value, str):
        return name, value.encode()
    return name, value


def _check(name: str, value: Any, default: Any) -> None:
    if type(value) is not type(default):
        wanted = {str: "text", int: "a whole number", bool: "true or false", bytes: "text"}
        raise RecordError(f"{name} must be {wanted.get(type(default), 'an object')}")
    if isinstance(value, dict) and not all(
        isinstance(part, str) for item in value.items() for part in item
    ):
        raise RecordError(f"{name} must be an object whose values are text")
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise RecordError(f"{name} must fit into 64 bits")
