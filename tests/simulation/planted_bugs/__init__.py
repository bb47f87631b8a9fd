"""Bugs planted into the product, each of which the simulation has to find.

Each is a patch of the real classes, for the length of a context. A checker that finds none of
them proves nothing. `test_simulation.py` finds the quick ones, and
``python -m tests.simulation --planted-bugs`` says how many seeds each one takes.

A module here holds the bugs of one part of the product; importing it enters them into
`PLANTED_BUGS`.
"""

from tests.simulation.planted_bugs import (
    actors,
    agents,
    answers,
    commits,
    streams,
    tasks,
    watches,
)
from tests.simulation.planted_bugs.registry import PLANTED_BUGS

__all__ = ["PLANTED_BUGS", "actors", "agents", "answers", "commits", "streams", "tasks", "watches"]
