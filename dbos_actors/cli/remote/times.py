"""Times as people type and read them. The API's are Unix seconds."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Final

import click

FIELDS: Final = frozenset(
    [
        "agent_start_time",
        "created_at",
        "first_seen",
        "last_seen",
        "received_at",
        "scheduled_at",
        "timestamp",
        "visibility_time",
    ]
)
"""The contract's fields that are times of day."""

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_RELATIVE: Final = re.compile(r"([+-])([0-9]{1,9})([smhd])", re.ASCII)


class Time(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.4
    """Unix seconds; ISO 8601, in UTC unless it says otherwise; or ``-2h``, ``+30s`` from now."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Unix seconds. Fails, naming the option, for anything else."""
        text = str(value).strip()
        if text.isascii() and text.isdigit():
            return int(text)
        if text == "now":
            return int(time.time())
        relative = _RELATIVE.fullmatch(text)
        if relative is not None:
            sign, number, unit = relative.groups()
            return int(time.time()) + int(f"{sign}{number}") * _UNITS_S[unit]
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(
                f"{text!r} is no time: give Unix seconds, 2026-11-25T12:00:00, or -2h from now",
                param,
                ctx,
            )
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


TIME = Time()


def shown(seconds: int) -> str:
    """A time of day in UTC; nothing for 0, and the number itself if no calendar has it."""
    if not seconds:
        return ""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return str(seconds)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
