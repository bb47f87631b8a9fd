"""Who calls, and whether they may: what a server asks of its users about each call's client."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

from grpclib.const import Status

from dbos_actors.rpc.wire.status import Fields


class Refusal(NamedTuple):
    """Why a call is refused when its headers come."""

    status: Status
    message: str
    fields: Fields = []  # noqa: RUF012 - nobody changes it
    """More trailers, such as the status' details."""


class Authenticator(Protocol):
    """Knows a call's client, and what that client may do. None of its methods may block."""

    def identify(
        self, headers: Mapping[bytes, bytes], certificate_names: Sequence[str]
    ) -> Hashable | None:
        """The client; None: nobody who may call. Runs for every call.

        ``certificate_names`` are those of the client's certificate
        (`dbos_actors.rpc.wire.peers.names_of`); none without mutual TLS.
        """
        ...

    def is_valid(self, client: Hashable) -> bool:
        """Whether a client that was identified before still may call."""
        ...

    def admit(self, client: Hashable, path: bytes) -> Refusal | None:
        """Why a call of the client is refused; None: it may be made. Runs for every call."""
        ...

    def denial(self, client: Hashable, path: bytes) -> str | None:
        """Why a call that was admitted may not go on, for its client's rights have changed."""
        ...
