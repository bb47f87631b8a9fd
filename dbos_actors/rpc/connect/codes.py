"""Connect's names of the gRPC statuses, and the HTTP status that each unary error has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from grpclib.const import Status

CODES: Final[Mapping[Status, tuple[str, int]]] = MappingProxyType(
    {
        Status.CANCELLED: ("canceled", 499),
        Status.UNKNOWN: ("unknown", 500),
        Status.INVALID_ARGUMENT: ("invalid_argument", 400),
        Status.DEADLINE_EXCEEDED: ("deadline_exceeded", 504),
        Status.NOT_FOUND: ("not_found", 404),
        Status.ALREADY_EXISTS: ("already_exists", 409),
        Status.PERMISSION_DENIED: ("permission_denied", 403),
        Status.RESOURCE_EXHAUSTED: ("resource_exhausted", 429),
        Status.FAILED_PRECONDITION: ("failed_precondition", 400),
        Status.ABORTED: ("aborted", 409),
        Status.OUT_OF_RANGE: ("out_of_range", 400),
        Status.UNIMPLEMENTED: ("unimplemented", 501),
        Status.INTERNAL: ("internal", 500),
        Status.UNAVAILABLE: ("unavailable", 503),
        Status.DATA_LOSS: ("data_loss", 500),
        Status.UNAUTHENTICATED: ("unauthenticated", 401),
    }
)
"""Name and HTTP status (Connect Protocol Reference, "Error Codes"). OK has none."""
