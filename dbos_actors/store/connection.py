"""One RESP connection over any Trio stream.

Owns the stream and turns every way it can fail into `ConnectionLostError`.
After that, or after a cancelled call, the replies no longer match the commands
and the connection must be closed. One task uses it at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from dbos_actors.errors import DbosError
from dbos_actors.store.resp import ProtocolError, ReplyError, ReplyReader, pack

# Large enough that the replies of a full batch take a handful of system calls.
RECEIVE_BYTES = 256 * 1024


class ConnectionLostError(DbosError):
    """The connection is gone or unusable; what was sent last may or may not have been executed."""


class ForeignReplyError(ConnectionLostError):
    """The other side does not speak Redis' protocol."""


class TlsError(ConnectionLostError):
    """The TLS handshake failed."""


class AuthenticationError(DbosError):
    """Redis refuses the user, the password or the database."""


@contextmanager
def answered_within(timeout_s: float) -> Iterator[None]:
    """Limit what is done with a connection in time; raises `ConnectionLostError` beyond it."""
    try:
        with trio.fail_after(timeout_s):
            yield
    except trio.TooSlowError:
        raise ConnectionLostError(f"no answer within {timeout_s:g} s") from None


class Connection:
    """Sends commands and returns as many replies."""

    __slots__ = ("_replies", "_stream")

    def __init__(self, stream: trio.abc.Stream) -> None:
        """Take ``stream`` over; `aclose` closes it."""
        self._stream = stream
        self._replies = ReplyReader()

    @property
    def error_count(self) -> int:
        """Error replies received so far, at any depth."""
        return self._replies.error_count

    async def call(self, payload: bytes, count: int) -> list[Any]:
        """Send packed commands in one write and return their ``count`` replies.

        Raises:
            ConnectionLostError: the outcome is unknown.
        """
        await self._send(payload)
        return await self._next_replies(count)

    async def transact(self, payload: bytes, queued: int, after: int) -> tuple[Any, list[Any]]:
        """Send ``MULTI``, ``queued`` commands, ``EXEC`` and more: ``after`` replies from EXEC on.

        Returns None and the last ``after`` replies if everything was queued; otherwise the
        replies to MULTI and the queued commands, some of them errors, and the last ones.

        Raises:
            ConnectionLostError: the outcome is unknown.
        """
        await self._send(payload)
        refused = None
        if not await self._all_queued(queued):
            refused = await self._next_replies(queued + 1)
        return refused, await self._next_replies(after)

    async def aclose(self) -> None:
        """Close at once, without waiting for the peer."""
        await trio.aclose_forcefully(self._stream)

    async def _all_queued(self, queued: int) -> bool:
        """Skip the replies that say so; what follows, or all if they do not, is left to parse."""
        expected = self._replies.replies_to_queueing(queued)
        position = 0
        while position < len(expected):
            chunk = await self._receive()
            end = position + len(chunk)
            if chunk[: len(expected) - position] != expected[position:end]:
                self._replies.feed(expected[:position] + chunk)
                return False
            if end > len(expected):
                self._replies.feed(chunk[len(expected) - position :])
            position = end
        return True

    async def _next_replies(self, count: int) -> list[Any]:
        replies: list[Any] = []
        while True:
            try:
                replies += self._replies.next_replies(count - len(replies))
            except ProtocolError as error:
                raise ForeignReplyError(f"not a Redis reply: {error}") from error
            if len(replies) == count:
                return replies
            self._replies.feed(await self._receive())

    async def _send(self, payload: bytes) -> None:
        try:
            await self._stream.send_all(payload)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise ConnectionLostError(_said(error)) from error

    async def _receive(self) -> bytes:
        try:
            chunk = await self._stream.receive_some(RECEIVE_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise ConnectionLostError(_said(error)) from error
        if not chunk:
            raise ConnectionLostError("Redis closed the connection")
        return bytes(chunk)


async def handshake(
    connection: Connection,
    *,
    username: str | None,
    password: str | None,
    database: int,
    client_name: str,
) -> None:
    """Authenticate, select the database and name the connection.

    Raises:
        AuthenticationError: Redis refuses.
        ConnectionLostError: the connection broke.
    """
    steps: list[tuple[bytes, bool]] = []  # (command, whether its refusal matters)
    if password is not None:
        who = (password,) if username is None else (username, password)
        steps.append((pack("AUTH", *who), True))
    if database:
        steps.append((pack("SELECT", database), True))
    steps.append((pack("CLIENT", "SETNAME", client_name), False))
    replies = await connection.call(b"".join(command for command, _ in steps), len(steps))
    for reply, (_, matters) in zip(replies, steps, strict=True):
        if isinstance(reply, ReplyError) and (matters or str(reply).startswith("NOAUTH")):
            raise AuthenticationError(str(reply))


def _said(error: BaseException) -> str:
    """What the operating system said, not what Trio wrapped it in."""
    cause = error.__cause__
    return str(cause if isinstance(cause, OSError) else error) or type(error).__name__
