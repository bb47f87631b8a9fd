"""File descriptors: how many connections the process has room for.

Linux gives a process 1,024 by default. A server whose connections had taken all of them could
not connect to its own database again. So connections get what is left after those that are
open when the server starts and `RESERVED` more.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from typing import Final

from dbos_actors.errors import ConfigurationError

RESERVED: Final = 64
"""Kept for everything but connections. The metrics page takes 20 at most; a database that
comes back is connected to a few times at once; the rest is for files, pipes and name lookups."""

CONNECTIONS_MIN: Final = 16
"""A server with room for fewer is not worth starting."""


def raise_descriptor_limit(connections: int) -> None:
    """Raise the soft limit to what so many connections need, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _open_now() + RESERVED + connections
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft not in {resource.RLIM_INFINITY, hard} and soft < wanted:
        with suppress(OSError, ValueError):  # some systems promise more than they grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_that_fit(wanted: int) -> int:
    """How many connections there are descriptors for, at most ``wanted``.

    Raises `ConfigurationError` when it is less than `CONNECTIONS_MIN`.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    taken = _open_now()
    fit = soft - taken - RESERVED
    if fit < CONNECTIONS_MIN:
        raise ConfigurationError(
            f"this process may open {soft} files (RLIMIT_NOFILE): {taken} are open, and at least "
            f"{RESERVED + CONNECTIONS_MIN} more are needed. Raise the limit, for example with "
            "ulimit -n"
        )
    return min(wanted, fit)


def _open_now() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - a directory of open descriptors
