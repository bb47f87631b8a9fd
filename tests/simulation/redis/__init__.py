"""A Redis in memory: its commands, the states of a server, and a deployment that can fail over.

It is deterministic: time is an argument, nothing is random, and what real servers leave
unspecified (the order of a set, how much a scan returns) has one answer here. `test_commands.py`
compares it with a real server, command by command. Only the commands that the service and its
tests use are here. Any other is an unknown command.

The modules named below enter their commands into `database.COMMANDS` when they are imported.
"""

from tests.simulation.redis import (
    hashes,
    keys,
    lists,
    scans,
    sets,
    sorted_sets,
    streams,
    strings,
)

__all__ = ["hashes", "keys", "lists", "scans", "sets", "sorted_sets", "streams", "strings"]
