"""The server's `Authenticator`: it knows who calls by the token file, and what their role allows.

With ``DBOS_AUTH_TOKEN_FILE`` every call needs ``authorization: Bearer <token>`` (RFC 6750, section
2.1) with a token of the file, or a client certificate with a name of the file. Health checks need
neither, since load balancers make them. `rpc.server` asks when a call's headers arrive, and before
it reads the call's message. A call that presents a token is judged by the token alone.

The file is followed, so that it can be changed without a restart. When a token is removed or
expires, or the role of its principal changes, the server ends the streams and the waiting calls
that may not go on. A file without an entry revokes them all. A file that is missing or cannot be
read changes nothing, since that is more often an accident than a decision.

The tokens of calls are looked up by their SHA-256, so how long that takes tells nothing about the
tokens of the file. The headers of tokens that were found valid are remembered in a dict, which
hashes them with a secret of the process; so neither does that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import trio
from grpclib.const import Status

from dbos_actors.access.entries import Entry, digest_of, parsed
from dbos_actors.access.principals import Principal
from dbos_actors.access.quotas import Rates
from dbos_actors.access.roles import Role, denial
from dbos_actors.clock import Clock
from dbos_actors.errors import ConfigurationError, QuotaError
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.reloading import ReloadingFiles
from dbos_actors.rpc.server.authentication import Refusal

logger = get_logger(__name__)

_LOOK_S: Final = 0.5
"""Between looks at the file. It is read when it was the same at two looks in a row: whoever
writes it in place empties it first, and that is no reason to end everybody's streams."""

_SCHEME: Final = b"Bearer "
"""As clients write it. Any case is accepted (RFC 9110, section 11.1), at a higher price."""


class TokenFile:
    """An `Authenticator` (`rpc.server.authentication`) by the token file."""

    def __init__(self, path: Path, clock: Clock, rates: Rates | None = None) -> None:
        """Read the file. Raises `ConfigurationError` if that cannot be done or it has no token.

        ``rates`` are what each principal may use, unless its entry says otherwise or it is an
        admin, who has to get in when others fill the server.
        """
        self._clock = clock
        self._rates = rates or Rates()
        self._asked = trio.Event()
        self._file = ReloadingFiles(partial(_read, path), path)
        if not self._file.value:
            raise ConfigurationError(f"DBOS_AUTH_TOKEN_FILE={path}: has no token")
        self._principals: dict[str, Principal] = {}
        self._by_digest: dict[str, Principal] = {}
        self._by_certificate: dict[str, Principal] = {}
        # The headers of valid tokens, as usually written; at most one for each.
        self._by_header: dict[bytes, Principal] = {}
        self._valid: tuple[Entry, ...] = ()
        self._enter(self._unexpired())

    # ------------------------------------------------------------ the file

    def look_now(self) -> None:
        """Have `watch` read the file at once, if it has changed."""
        self._asked.set()

    async def watch(self, on_change: Callable[[], Awaitable[None]]) -> NoReturn:
        """Follow file and clock, until cancelled; ``on_change`` is awaited when rights change."""
        while True:
            with trio.move_on_after(_LOOK_S):
                await self._asked.wait()
            try:
                is_new = self._file.reload(stable=not self._asked.is_set())
            except ConfigurationError as error:
                logger.error("tokens_not_reloaded", error=str(error))  # noqa: TRY400 - it says all
                is_new = False
            self._asked = trio.Event()
            valid = self._unexpired()
            if is_new:
                log = logger.info if valid else logger.warning
                log("tokens_reloaded", tokens=len(valid))
            if valid != self._valid:
                for entry in self._expired(valid):
                    logger.info("token_expired", principal=entry.name, id=entry.id)
                self._enter(valid)
                await on_change()

    def _unexpired(self) -> tuple[Entry, ...]:
        now_s = self._clock.wall_s()
        return tuple(entry for entry in self._file.value if not entry.has_expired(now_s))

    def _expired(self, valid: Iterable[Entry]) -> list[Entry]:
        """What is in the file, was valid, and is so no longer."""
        return [entry for entry in self._valid if entry not in valid and entry in self._file.value]

    def _enter(self, entries: tuple[Entry, ...]) -> None:
        """Let these entries count, and no others."""
        before, self._principals = self._principals, {}
        self._by_digest, self._by_certificate, self._by_header = {}, {}, {}
        for entry in entries:
            principal = self._principals.get(entry.name) or before.get(entry.name)
            if principal is None or principal.role is not entry.role:
                principal = Principal(entry.name, entry.role)
            self._principals[entry.name] = principal
            principal.limit(self._rates_of(entry))
            if entry.sha256 is not None:
                self._by_digest[entry.sha256] = principal
            else:
                self._by_certificate[str(entry.certificate)] = principal
        self._valid = entries

    def _rates_of(self, entry: Entry) -> Rates:
        usual = Rates() if entry.role is Role.ADMIN else self._rates
        calls, size = entry.calls_per_second, entry.bytes_per_second
        return Rates(
            calls_per_s=usual.calls_per_s if calls is None else calls,
            bytes_per_s=usual.bytes_per_s if size is None else size,
        )

    # ----------------------------------------------------- an Authenticator

    def identify(
        self, headers: Mapping[bytes, bytes], certificate_names: Sequence[str]
    ) -> Principal | None:
        """The principal of the token that a call presents, or else of the certificate."""
        header = headers.get(b"authorization")
        if header is None:
            for name in certificate_names:
                if (principal := self._by_certificate.get(name)) is not None:
                    return principal
            return None
        found = self._by_header.get(header)
        return self._by_token(header) if found is None else found

    def _by_token(self, header: bytes) -> Principal | None:
        if header[: len(_SCHEME)].lower() != _SCHEME.lower():
            return None
        token = header[len(_SCHEME) :].strip(b" ")
        principal = self._by_digest.get(digest_of(token))
        if principal is not None and header == _SCHEME + token:
            self._by_header[header] = principal
        return principal

    def is_valid(self, client: Hashable) -> bool:
        """Whether the principal still has an entry in the file, with the same role."""
        return isinstance(client, Principal) and self._principals.get(client.name) is client

    def admit(self, client: Hashable, path: bytes, now_s: float) -> Refusal | None:
        """RESOURCE_EXHAUSTED beyond the quota; PERMISSION_DENIED if the role has not the method.

        A call that is denied counts against the quota.
        """
        assert isinstance(client, Principal)
        account = client.account
        if account is not None and (delay_s := account.take(now_s)):
            error = QuotaError(f"the principal {client.name!r}", quota=str(account.rates))
            return Refusal(Status.RESOURCE_EXHAUSTED, str(error), delay_s)
        if client.paths is None or path in client.paths:
            return None
        text = denial(client.role, path)
        log_limited(logger.info, "permission_denied", principal=client.name, reason=text)
        return Refusal(Status.PERMISSION_DENIED, text)

    def charge(self, client: Hashable, messages: int, size_bytes: int) -> None:
        """Count what was sent either way, against the principal's quota."""
        account = client.account  # type: ignore[attr-defined]  # a Principal: it was identified
        if account is not None:
            account.charge(messages, size_bytes)

    def delay_s(self, client: Hashable, now_s: float) -> float:
        """How long the principal's streams have to wait; 0 while it is within its quota."""
        assert isinstance(client, Principal)
        return 0.0 if client.account is None else client.account.delay_s(now_s)

    def denial(self, client: Hashable, path: bytes) -> str | None:
        """What role the principal lacks for the method, or None."""
        assert isinstance(client, Principal)
        return None if client.may_call(path) else denial(client.role, path)


def _read(path: Path) -> tuple[Entry, ...]:
    source = f"DBOS_AUTH_TOKEN_FILE={path}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source}: {error}") from error
    return tuple(entry for _, entry in parsed(text, source) if entry is not None)
