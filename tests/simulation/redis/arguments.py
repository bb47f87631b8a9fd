"""Arguments of commands: parsed as Redis parses them, with its errors."""

from __future__ import annotations

import math

from tests.simulation.redis.replies import NOT_FLOAT, NOT_INTEGER, CommandError

Arguments = list[bytes]


def integer(text: bytes) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    plain = digits.isdigit() and (digits == b"0" or digits[:1] != b"0") and text != b"-0"
    if not plain or not -(2**63) <= int(text) < 2**63:
        raise CommandError(NOT_INTEGER)
    return int(text)


def number(text: bytes, problem: str = NOT_FLOAT) -> float:
    try:
        value = float(text)
    except ValueError:
        raise CommandError(problem) from None
    if math.isnan(value) or text != text.strip() or b"_" in text:
        raise CommandError(problem)
    return value


def shown(value: float) -> bytes:
    """A double as Redis writes it."""
    if math.isinf(value):
        return b"inf" if value > 0 else b"-inf"
    if value == int(value) and abs(value) < 1e17:
        return b"%d" % int(value)
    return repr(value).encode()


def span(start: int, stop: int, size: int) -> slice:
    """A range given by two inclusive indexes, negative ones from the end."""
    start = max(start + size if start < 0 else start, 0)
    stop = stop + size if stop < 0 else stop
    return slice(start, max(stop + 1, start))
