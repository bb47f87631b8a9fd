"""Who calls, and whether they may: what a server asks of its users about each call's client."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

from grpclib.const import Status

from dbos_actors.rpc.wire.status import Fields, retry_fields, status_fields


class Refusal(NamedTuple):
    """Why a call is refused when its headers come."""

    status: Status
    message: str
    retry_after_s: float | None = None
    """When the client may try again; it is told so by a google.rpc.RetryInfo."""

    @property
    def fields(self) -> Fields:
        """The trailers that say so."""
        fields = status_fields(self.status, self.message)
        if self.retry_after_s is not None:
            fields += retry_fields(self.status, self.message, self.retry_after_s)
        return fields


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

    def admit(self, client: Hashable, path: bytes, now_s: float) -> Refusal | None:
        """Why a call of the client is refused; None: it may be made. Runs for every call.

        RESOURCE_EXHAUSTED means that the client is beyond its quota; see
        `dbos_actors.rpc.server.excess`.
        """
        ...

    def charge(self, client: Hashable, messages: int, size_bytes: int) -> None:
        """Count what the client has sent or was sent, after its call was admitted.

        ``messages`` are those of streams of requests: each is as much work as a call.
        """
        ...

    def delay_s(self, client: Hashable, now_s: float) -> float:
        """How long the client's streams wait before they take or send more; 0: not at all."""
        ...

    def denial(self, client: Hashable, path: bytes) -> str | None:
        """Why a call that was admitted may not go on, for its client's rights have changed."""
        ...
