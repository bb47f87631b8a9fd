"""Durations and sizes as operators write them: ``90s``, ``24h``, ``8MiB``, or plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator

_DURATION_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)

# A century: nothing meant in earnest is longer, and sums of such times stay exact in a float.
_DURATION_MAX_S = 100 * 365 * 86400.0


def _quantity(value: object, units: Mapping[str, float]) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2].lower() not in units:
        return None
    return float(match[1]) * units[match[2].lower()]


def _duration_s(value: object) -> float:
    seconds = _quantity(value, _DURATION_UNITS)
    if seconds is None or not 0 <= seconds <= _DURATION_MAX_S:
        raise ValueError("must be a duration: seconds from 0, or a number with s, m, h or d")
    return seconds


def _size_bytes(value: object) -> int:
    size = _quantity(value, _SIZE_UNITS)
    if size is None or not math.isfinite(size) or size < 0 or size != int(size):
        raise ValueError("must be a size: bytes from 0, or a number with KiB, MiB or GiB")
    return int(size)


Duration = Annotated[float, BeforeValidator(_duration_s)]
Size = Annotated[int, BeforeValidator(_size_bytes)]
