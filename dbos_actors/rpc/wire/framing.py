"""gRPC's length-prefixed messages, for either side of a connection. Pure.

A message on the wire is one flag byte (1: compressed), its length as four bytes, big endian, and
its body (gRPC over HTTP2, "Length-Prefixed-Message"). A DATA frame may hold several messages, or a
part of one, so `MessageReader` takes bytes in pieces of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

_PREFIX = Struct(">BI")

PREFIX_BYTES = _PREFIX.size
"""Bytes before each message's body."""

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""Largest message received by default; what grpc-go and gRPC core default to."""

unpack_prefix = _PREFIX.unpack_from
"""``(flag, length)`` of a message from at least five bytes."""


class FramingError(Exception):
    """The peer's bytes are not a sequence of gRPC messages."""


class MessageTooLargeError(FramingError):
    """A message announces more bytes than the limit; its body is not awaited."""

    def __init__(self, *, size: int, limit: int) -> None:
        super().__init__(f"message of {size} bytes is larger than the limit of {limit} bytes")
        self.size = size
        self.limit = limit


class InvalidFlagError(FramingError):
    """A message's first byte is neither 0 nor 1."""

    def __init__(self, flag: int) -> None:
        super().__init__(f"invalid message flag {flag}")
        self.flag = flag


class TruncatedMessageError(FramingError):
    """The stream ended inside a message."""

    def __init__(self) -> None:
        super().__init__("the stream ended inside a message")


def frame(body: bytes, *, compressed: bool = False) -> bytes:
    """One message as it goes on the wire."""
    return _PREFIX.pack(compressed, len(body)) + body


class MessageReader:
    """Cuts one stream's bytes into messages, holding at most one unfinished message.

    `feed` takes bytes as they arrive; iterate to take ``(compressed, body)`` of each
    message that is complete. Raises `MessageTooLargeError` as soon as a prefix
    announces more than ``limit`` bytes, `InvalidFlagError` on a bad flag; the reader
    is of no use after that.
    """

    __slots__ = ("_buffer", "limit")

    def __init__(self, limit: int = MESSAGE_BYTES_MAX) -> None:
        self.limit = limit
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes fed and not taken yet."""
        return len(self._buffer)

    @property
    def announced_bytes(self) -> int:
        """Size of the message being read, prefix included, once it is known; else 0.

        Raises as `next` does.
        """
        if len(self._buffer) < PREFIX_BYTES:
            return 0
        flag: int
        length: int
        flag, length = unpack_prefix(self._buffer)
        self._check_prefix(flag, length)
        return PREFIX_BYTES + length

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes of the stream."""
        self._buffer += data

    def next(self) -> tuple[bool, bytes] | None:
        """Take the next complete message, or None."""
        messages = self.next_many(1)
        return messages[0] if messages else None

    def next_many(self, count_max: int) -> list[tuple[bool, bytes]]:
        """Take the next complete messages, as `next` does; none if there is none.

        A bad prefix behind good messages is found when it is the next.
        """
        buffer, limit = self._buffer, self.limit
        size = len(buffer)
        messages: list[tuple[bool, bytes]] = []
        start = 0
        with memoryview(buffer) as view:
            while len(messages) < count_max and size - start >= PREFIX_BYTES:
                flag, length = unpack_prefix(buffer, start)
                body = start + PREFIX_BYTES
                end = body + length
                if flag > 1 or length > limit:
                    if not messages:
                        self._check_prefix(flag, length)
                    break
                if end > size:
                    break
                messages.append((flag == 1, bytes(view[body:end])))
                start = end
        del buffer[:start]
        return messages

    def _check_prefix(self, flag: int, length: int) -> None:
        if flag > 1:
            raise InvalidFlagError(flag)
        if length > self.limit:
            raise MessageTooLargeError(size=length, limit=self.limit)

    def __iter__(self) -> Iterator[tuple[bool, bytes]]:
        while (message := self.next()) is not None:
            yield message

    def clear(self) -> int:
        """Forget what was fed and not taken; how many bytes that was."""
        size = len(self._buffer)
        self._buffer.clear()
        return size

    def end(self) -> None:
        """The stream has ended; raises `TruncatedMessageError` if that was inside a message."""
        if self._buffer:
            raise TruncatedMessageError
