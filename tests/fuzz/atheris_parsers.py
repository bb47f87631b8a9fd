"""``python -m tests.fuzz.atheris_parsers -runs=200000``: coverage-guided bytes for every parser.

Needs the package ``atheris`` (Linux, CPython 3.11 and later), which nothing else here does. The
first byte of an input chooses the parser. Whatever comes, a parser takes it or refuses it with its
own error; anything else ends the run, and the input is kept by libFuzzer.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["dbos_actors"]):
    from dbos_actors.api import messages
    from dbos_actors.domain import limits as domain_limits
    from dbos_actors.domain.paging import Listing
    from dbos_actors.errors import RefusedError
    from dbos_actors.rpc.wire.framing import FramingError, MessageReader
    from dbos_actors.rpc.wire.metadata import (
        MetadataError,
        decode_metadata,
        decode_timeout,
        encode_status_message,
    )
    from dbos_actors.store.commit_key import parse_key
    from dbos_actors.store.keys import escaped

_LIMITS = domain_limits.Limits()
_CHECKS = (
    ("RegisterAgentRequest", domain_limits.check_agent),
    ("SetModuleStateRequest", domain_limits.check_state),
    ("StoreResultRequest", domain_limits.check_result),
    ("ScheduleTaskRequest", domain_limits.check_task),
)


def page_token(data: bytes) -> None:
    listing = Listing("ListAgents", "filter")
    text = data.decode("latin-1")
    with suppress(RefusedError):
        listing.position(text)
    position = listing.position(listing.token(len(data), text))
    assert position is not None
    assert position.id == text


def metadata(data: bytes) -> None:
    name, _, value = data.partition(b"\0")
    with suppress(MetadataError):
        decode_metadata([(name, value), (name + b"-bin", value)])
    with suppress(MetadataError):
        decode_timeout(value)
    assert encode_status_message(data.decode("utf-8", "replace")).isascii()


def framing(data: bytes) -> None:
    """Whole or byte by byte, the same comes out."""
    found = []
    for slices in ([data], [data[i : i + 1] for i in range(len(data))]):
        reader = MessageReader(limit=1_000)
        taken: list[Any] = []
        try:
            for part in slices:
                reader.feed(part)
                while (message := reader.next()) is not None:
                    taken.append(message)
        except FramingError as error:
            taken.append(type(error))
        found.append(taken)
    assert found[0] == found[1]


def checks(data: bytes) -> None:
    name, check = _CHECKS[data[0] % len(_CHECKS)] if data else _CHECKS[0]
    try:
        request = getattr(messages, name).FromString(data[1:])
    except Exception:  # noqa: BLE001 - the codec's own affair
        return
    with suppress(RefusedError):
        check(request, _LIMITS)


def keys(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert not set(escaped(text)) & set("{}:")
    parse_key(data)


PARSERS = (page_token, metadata, framing, checks, keys)


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    if data:
        PARSERS[data[0] % len(PARSERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
