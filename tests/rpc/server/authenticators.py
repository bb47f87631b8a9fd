"""Authenticators for tests."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from grpclib.const import Status

from dbos_actors.rpc.server.authentication import Refusal


class Tokens:
    """Knows the clients in a set by a header; others say what they may not, or no longer, do."""

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = set(tokens)
        self.denied: set[tuple[bytes, bytes]] = set()
        self.exhausted: set[bytes] = set()
        self.charged: list[tuple[Hashable, int, int]] = []

    def identify(
        self, headers: Mapping[bytes, bytes], certificate_names: Sequence[str]
    ) -> Hashable | None:
        token = headers.get(b"authorization")
        return token if token in self.tokens else None

    def is_valid(self, client: Hashable) -> bool:
        return client in self.tokens

    def admit(self, client: Hashable, path: bytes, now_s: float) -> Refusal | None:
        if client in self.exhausted:
            return Refusal(Status.RESOURCE_EXHAUSTED, "that is enough", 0.25)
        text = self.denial(client, path)
        return None if text is None else Refusal(Status.PERMISSION_DENIED, text)

    def charge(self, client: Hashable, messages: int, size_bytes: int) -> None:
        self.charged.append((client, messages, size_bytes))

    def delay_s(self, client: Hashable, now_s: float) -> float:
        return 0.0

    def denial(self, client: Hashable, path: bytes) -> str | None:
        return "it is not for you" if (client, path) in self.denied else None
