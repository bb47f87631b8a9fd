"""The listeners of a channel's calls, as grpclib has them.

`grpclib.events.listen` registers a listener with any object that has a ``__dispatch__`` of
grpclib's. The class of that object is not part of grpclib's public interface; this module is the
only one that uses it. ``tests/rpc/client/test_events.py`` fails if a new grpclib has moved it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from grpclib.events import _DispatchChannelEvents

ChannelEvents: TypeAlias = Any
"""Has a coroutine for each event of `grpclib.events`, named as the event, which calls its listeners
and returns a tuple of what they have made of its payload."""


def channel_events() -> ChannelEvents:
    """A channel's ``__dispatch__``, without listeners."""
    return _DispatchChannelEvents()
