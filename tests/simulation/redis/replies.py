"""Replies that are no plain values: errors, simple strings, and the null of an EXEC."""

from __future__ import annotations

from typing import Final


class CommandError(Exception):
    """An error reply; the text begins with its code."""


class Simple(str):
    """A simple string reply, such as OK."""

    __slots__ = ()


class NullArray:
    """The reply of an EXEC whose watched keys were touched."""


OK: Final = Simple("OK")
NULL_ARRAY: Final = NullArray()
WRONG_TYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
SYNTAX: Final = "ERR syntax error"
NOT_INTEGER: Final = "ERR value is not an integer or out of range"
NOT_FLOAT: Final = "ERR value is not a valid float"
BAD_STREAM_ID: Final = "ERR Invalid stream ID specified as stream command argument"
