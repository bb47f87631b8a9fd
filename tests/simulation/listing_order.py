"""The order of what ListModuleStates lists: by the time of the last change, oldest first.

Each report carries a tag of its own, and a listed state shows the tag of the report that changed it
last. So the listing itself tells which calls these were. If every call with one tag was answered
before any call with the other tag began, there is no doubt which state changed first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tests.simulation.history import Ending, History, Operation

Reports = Mapping[str, Sequence[Operation]]
"""The calls of SetModuleState by the tag that they carry."""


def disordered_listings(history: History) -> list[str]:
    """Listings in which a state comes before another one that changed earlier."""
    reports: dict[str, list[Operation]] = defaultdict(list)
    for operation in history.operations:
        if operation.method == "SetModuleState":
            reports[operation.request["state"]["details"]["tag"]].append(operation)
    return [
        f"{earlier.details['tag']} changed before {later.details['tag']}, and comes after it:\n"
        f"    {listing}"
        for listing in history.operations
        if listing.method == "ListModuleStates"
        and listing.ending is Ending.ANSWERED
        and listing.server not in history.overtaken
        for later, earlier in _reversed_pairs(listing, reports)
    ]


def _reversed_pairs(listing: Operation, reports: Reports) -> list[tuple[Any, Any]]:
    """Pairs of listed states, the second of which has certainly changed before the first."""
    spans = []
    for state in listing.answer.states:
        calls = reports.get(state.details.get("tag", ""), ())
        if calls and all(call.ending is Ending.ANSWERED for call in calls):
            # A state that changes during the listing is read anew where it stood before.
            ends = [call.end or 0 for call in calls]
            if max(ends) < listing.start:
                spans.append((min(call.start for call in calls), max(ends), state))
    return [
        (one, two)
        for place, (one_start, _, one) in enumerate(spans)
        for _, two_end, two in spans[place + 1 :]
        if two_end < one_start
    ]
