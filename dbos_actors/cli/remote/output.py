"""Printing records: a table for people, JSON for programs.

What clients have stored is printed, so control characters never reach the terminal: they could move
its cursor, or type for the reader.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbos_actors.cli.remote import times
from dbos_actors.cli.remote.records import Record

FORMATS: Final = ("table", "json", "jsonl")

_CELL_CHARACTERS_MAX: Final = 400
"""Of one value in a table; the rest is cut off with an ellipsis."""

_PIPE_COLUMNS: Final = 10_000
"""Of a table that a program reads: a record stays on its line."""

# Control characters, and those that change the direction of the text that follows.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    value: Callable[[Record], Any] | None = None
    """From the record; by default the field of this name."""

    def cell(self, record: Record) -> str:
        """What the table shows of a record."""
        value = record.get(self.name) if self.value is None else self.value(record)
        if value is None or value is False or value in ("", 0):
            return "no" if value is False else ""
        text = "yes" if value is True else readable(value)
        if len(text) > _CELL_CHARACTERS_MAX:
            return text[: _CELL_CHARACTERS_MAX - 1] + "…"
        return text


def _spelt_out(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if name in times.FIELDS and value:
        return f"{value} ({times.shown(value)})"
    return value


def readable(value: Any) -> str:
    """A value as one line of harmless text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _UNSAFE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON with the same characters escaped, which changes nothing of its meaning."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "\n".join(_UNSAFE.sub(_escaped, line) for line in text.split("\n"))


@dataclass(frozen=True, slots=True)
class Output:
    """Where and how a command prints."""

    format: str

    async def many(self, records: AsyncIterator[Record], columns: Sequence[Column]) -> int:
        """Print records as they come (a table: when all have come); how many there were."""
        count = 0
        if self.format == "table":
            names = [column.name.replace("_", " ") for column in columns]
            table = Table(*names, box=None, pad_edge=False, header_style="bold")
            async for record in records:
                table.add_row(*[Text(column.cell(record)) for column in columns])
                count += 1
            if count:
                width = None if sys.stdout.isatty() else _PIPE_COLUMNS
                Console(file=sys.stdout, width=width).print(table)
            else:
                note("There are none.")
            return count
        separator = "[\n" if self.format == "json" else ""
        async for record in records:
            click.echo(f"{separator}{json_text(record)}", nl=self.format == "jsonl")
            separator = ",\n" if self.format == "json" else ""
            count += 1
        if self.format == "json":
            click.echo("\n]" if count else "[]")
        return count

    def one(self, record: Record) -> None:
        """Print one record: a line for each field, or an object."""
        if self.format != "table":
            click.echo(json_text(record, indent=2 if self.format == "json" else None))
            return
        width = max(map(len, record))
        for name, value in record.items():
            click.echo(f"{name:<{width}}  {readable(_spelt_out(name, value))}".rstrip())

    def done(self, text: str, **record: Any) -> None:
        """Say what was done: a sentence, or an object with the same facts."""
        click.echo(readable(text) if self.format == "table" else json_text(record))


def note(text: str) -> None:
    """Tell the reader something that is not part of the output."""
    click.echo(readable(text), err=True)
