"""The headers that a client's requests begin with. Pure."""

from __future__ import annotations

from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.wire.compression import ACCEPTED, GZIP
from dbos_actors.rpc.wire.http2 import HEADER_BYTES_MAX, header_block_bytes
from dbos_actors.rpc.wire.metadata import encode_timeout
from dbos_actors.rpc.wire.status import Fields

USER_AGENT = b"grpc-python-trio/1"

_FIELDS = (
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", USER_AGENT),
    (b"grpc-accept-encoding", ACCEPTED),
)


class HeadersTooLargeError(Exception):
    """The caller's metadata makes the headers larger than the server accepts."""

    def __init__(self, *, size: int, limit: int) -> None:
        super().__init__(
            f"metadata of {size} bytes is larger than the server's limit of {limit} bytes"
        )


class RequestHeaders:
    """What the headers of all requests on one connection have in common."""

    __slots__ = ("_pseudo_fields", "bytes_max")

    def __init__(self, scheme: bytes, authority: bytes) -> None:
        self._pseudo_fields = [
            (b":method", b"POST"),
            (b":scheme", scheme),
            (b":authority", authority),
        ]
        self.bytes_max = HEADER_BYTES_MAX
        """Largest header block that the server accepts, as far as it has said."""

    def of(self, call: ClientCall, now_s: float) -> Fields:
        """The headers of a call. Raises `HeadersTooLargeError`."""
        headers = [*self._pseudo_fields, (b":path", call.path), *_FIELDS]
        if call.announces_gzip:
            headers.append((b"grpc-encoding", GZIP))
        if call.deadline_s is not None:
            headers.append((b"grpc-timeout", encode_timeout(call.deadline_s - now_s)))
        if call.fields:
            headers += call.fields
            size = header_block_bytes(headers)
            if size > self.bytes_max:
                raise HeadersTooLargeError(size=size, limit=self.bytes_max)
        return headers
