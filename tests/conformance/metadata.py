"""Metadata as connectrpc's conformance suite writes it.

Its Header messages have binary values in base64.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Any

from multidict import MultiDict

from dbos_actors.rpc.wire.metadata import MetadataValue


def from_headers(headers: Iterable[Any]) -> list[tuple[str, MetadataValue]]:
    """Metadata to send."""
    return [
        (header.name.lower(), _from_text(header.name.lower(), value))
        for header in headers
        for value in header.value
    ]


def to_headers(metadata: Mapping[str, MetadataValue], headers: Any) -> None:
    """Add metadata that was received to a repeated field of Header."""
    received = MultiDict(metadata)
    for name in dict.fromkeys(received):
        headers.add(name=name, value=[_to_text(value) for value in received.getall(name)])


def _from_text(name: str, value: str) -> MetadataValue:
    return b64decode(value + "=" * (-len(value) % 4)) if name.endswith("-bin") else value


def _to_text(value: MetadataValue) -> str:
    return b64encode(value).rstrip(b"=").decode() if isinstance(value, bytes) else value
