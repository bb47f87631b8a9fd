"""The Redis serialization protocol (RESP2), by hiredis: commands to bytes, bytes to replies.

Pure: nothing here reads or writes a socket. An error reply is a value
(`ReplyError`), never raised here: whoever sent the command knows what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

from hiredis import ProtocolError, Reader, ReplyError, pack_command

__all__ = [
    "ProtocolError",
    "ReplyError",
    "ReplyReader",
    "pack",
    "pack_argument",
    "pack_each",
    "pack_head",
    "unpacked",
]

INCOMPLETE = object()

# "+OK" answers MULTI, "+QUEUED" every command after it.
_MULTI_ACCEPTED = b"+OK\r\n"
_QUEUED = b"+QUEUED\r\n"


def pack(*args: str | bytes | float) -> bytes:
    """One command as it goes over the wire; text is encoded as UTF-8."""
    return cast("bytes", pack_command(args))  # type: ignore[arg-type]


def pack_head(size: int, *args: str | bytes) -> bytes:
    """The first ``args`` of a command of ``size`` arguments; `pack_argument` gives each other one.

    For a command that is sent over and over with the same beginning: half the time of `pack`.
    """
    head = pack(*args)
    return b"*%d%b" % (size, head[head.index(b"\r\n") :])


def pack_argument(value: bytes) -> bytes:
    """One further argument of a command that `pack_head` began."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def key_of(command: Sequence[bytes]) -> bytes:
    """The key that a command works on; of a script, its first one."""
    return command[3] if command[0] == b"EVAL" else command[1]


def pack_each(head: bytes, arguments: Sequence[bytes]) -> bytes:
    """One command for each of ``arguments``, joined: what `pack_head` began, and the argument.

    Arguments of one length, as most ids have, take 2 us for a hundred commands, others 30.
    """
    sizes = set(map(len, arguments))
    if len(sizes) != 1:
        return b"".join([b"%b$%d\r\n%b\r\n" % (head, len(each), each) for each in arguments])
    beginning = b"%b$%d\r\n" % (head, sizes.pop())
    return beginning + (b"\r\n" + beginning).join(arguments) + b"\r\n"


def unpacked(command: bytes) -> list[bytes]:
    """The arguments of one packed command."""
    reader = Reader()
    reader.feed(command)
    return cast("list[bytes]", reader.gets())


def all_unpacked(commands: bytes) -> list[list[bytes]]:
    """The arguments of each of several packed commands."""
    reader = Reader()
    reader.feed(commands)
    return list(iter(reader.gets, False))


class ReplyReader:
    """Cuts a stream of bytes into replies.

    ``error_count`` counts error replies at any depth, so that a caller that got
    thousands of replies need not look at each to know that none is an error.
    """

    __slots__ = ("_queued_replies", "_reader", "error_count")

    def __init__(self) -> None:
        self.error_count = 0
        self._reader = Reader(replyError=self._count_error, notEnoughData=INCOMPLETE)
        self._queued_replies = _MULTI_ACCEPTED + _QUEUED * 64

    def _count_error(self, text: str) -> ReplyError:
        self.error_count += 1
        return ReplyError(text)

    def feed(self, data: bytes) -> None:
        """Add what the peer sent."""
        self._reader.feed(data)

    def next_replies(self, count: int) -> list[Any]:
        """The next replies (bytes, int, list, None or `ReplyError`) that have come whole.

        At most ``count`` of them.

        Raises:
            ProtocolError: the bytes are not RESP2; the connection is unusable.
        """
        return list(islice(iter(self._reader.gets, INCOMPLETE), count))

    def replies_to_queueing(self, count: int) -> bytes:
        """The bytes that say: MULTI and ``count`` commands after it were accepted.

        Comparing with them is many times cheaper than parsing as many replies.
        """
        size = len(_MULTI_ACCEPTED) + count * len(_QUEUED)
        while len(self._queued_replies) < size:
            self._queued_replies += _QUEUED * (len(self._queued_replies) // len(_QUEUED))
        return self._queued_replies[:size]


def first_error(replies: Sequence[object]) -> ReplyError | None:
    """The first error among ``replies``, or None."""
    for reply in replies:
        if isinstance(reply, ReplyError):
            return reply
    return None
