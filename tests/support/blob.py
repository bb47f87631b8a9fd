"""A message that is its own bytes, for methods of tests."""

from __future__ import annotations

from typing import Self


class Blob(bytes):
    """Bytes with the two methods of a protobuf message that a gRPC server calls."""

    @classmethod
    def FromString(cls, data: bytes) -> Self:  # noqa: N802
        return cls(data)

    def SerializeToString(self) -> bytes:  # noqa: N802
        return bytes(self)
