"""What a server needs of the engine below a connection, whichever version of HTTP it speaks.

`Http2Connection` and `Http1Connection` have it; they say what the methods do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """The server's side of one connection."""

    @property
    def receive(self) -> Callable[[bytes | bytearray | memoryview], None]:
        """Feed bytes from the client."""
        ...

    @property
    def events(self) -> Callable[[], list[Any]]:
        """Take the events of what came."""
        ...

    @property
    def output(self) -> Callable[[int], bytes]:
        """At most so many bytes to send."""
        ...

    @property
    def queued_bytes(self) -> Callable[..., int]:
        """Of answers' bodies, of one stream or of all."""
        ...

    @property
    def acknowledge(self) -> Callable[[int, int], None]:
        """``(amount, stream_id)``: so many received bytes are used."""
        ...

    @property
    def send_response(self) -> Callable[..., None]:
        """Queue the head of an answer."""
        ...

    @property
    def send_data(self) -> Callable[..., None]:
        """Queue a part of its body."""
        ...

    @property
    def send_trailers(self) -> Callable[..., None]:
        """Queue what ends it, in gRPC."""
        ...

    @property
    def reset(self) -> Callable[[int, int], None]:
        """Give a stream up."""
        ...

    def share_fairly(self, stream_id: int) -> None:
        """Interleave a stream's body with others."""
        ...

    def has_lost_window(self, held_bytes: Callable[[], int]) -> bool:
        """Whether the client will run out of the connection's window."""
        ...

    def remote_window_bytes(self, stream_id: int) -> int:
        """What the client takes on a stream; with 0, on the connection."""
        ...

    def can_send_trailers(self, stream_id: int) -> bool:
        """Whether nothing that was queued on a stream is held back."""
        ...

    def ping(self, payload: bytes) -> None:
        """Have `PingAcknowledged` come when the client has read what was sent before."""
        ...

    def announce_shutdown(self) -> None:
        """Begin a graceful end."""
        ...

    def shut_down(self, error_code: int = 0, debug: bytes = b"") -> None:
        """Take no further streams."""
        ...
