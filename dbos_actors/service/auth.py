"""Bearer tokens: who may call, by a file of tokens (RFC 6750, section 2.1).

With ``DBOS_AUTH_TOKEN_FILE`` every call needs ``authorization: Bearer <token>`` with one of the
file's tokens, except health checks, which load balancers make. `rpc.server` checks the token when
a call's headers arrive, and before it reads the call's message.

The file is followed, so that tokens are rotated without a restart: add the new one, move the
clients, remove the old one. When a token is removed, the server ends the streams and the waiting
calls that were begun with it. A file without tokens revokes them all. A file that is missing or
cannot be read changes nothing, since that is more often an accident than a decision.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from functools import partial
from hmac import compare_digest
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from dbos_actors.errors import ConfigurationError
from dbos_actors.reloading import ReloadingFiles

logger = structlog.get_logger(__name__)

_LOOK_S = 0.5
"""Between looks at the file. It is read when it was the same at two looks in a row: whoever
writes it in place empties it first, and that is no reason to end everybody's streams."""

_SCHEME = b"Bearer "
"""As clients write it. Any case is accepted (RFC 9110, section 11.1), at a higher price."""

_TOKENS_MAX = 100
"""Each call is compared with every token, whichever fits, so that time tells nothing."""


class BearerAuth:
    """An `Authenticator` (`rpc.server.strangers`): knows who presents a token of the file."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises `ConfigurationError` if that cannot be done or it has no token."""
        self._file = ReloadingFiles(partial(_read, path), path)
        self._asked = trio.Event()
        # What an `authorization` header must be, each.
        self._accepted = self._file.value
        if not self._accepted:
            raise ConfigurationError(f"DBOS_AUTH_TOKEN_FILE={path}: has no token")

    def look_now(self) -> None:
        """Have `watch` read the file at once, if it has changed."""
        self._asked.set()

    async def watch(self, on_change: Callable[[], Awaitable[None]]) -> NoReturn:
        """Follow the file, until cancelled; ``on_change`` is awaited when tokens have changed."""
        while True:
            with trio.move_on_after(_LOOK_S):
                await self._asked.wait()
            try:
                is_new = self._file.reload(settled=not self._asked.is_set())
            except ConfigurationError as error:
                logger.error("tokens_not_reloaded", error=str(error))  # noqa: TRY400 - it says all
                continue
            finally:
                self._asked = trio.Event()
            if is_new:
                self._accepted = self._file.value
                log = logger.info if self._accepted else logger.warning
                log("tokens_reloaded", tokens=len(self._accepted))
                await on_change()

    def identify(self, headers: Mapping[bytes, bytes]) -> Hashable | None:
        """The header that a call presents, as usually written, if it has a token of the file."""
        presented = headers.get(b"authorization", b"")
        client = None
        for expected in self._accepted:
            if compare_digest(presented, expected):
                client = expected
        if client is None and presented[: len(_SCHEME)].lower() == _SCHEME.lower():
            usual = _SCHEME + presented[len(_SCHEME) :].strip(b" ")
            if usual != presented:
                return self.identify({b"authorization": usual})
        return client

    def is_valid(self, client: Hashable) -> bool:
        """Whether its token is still one of the file's."""
        return client in self._accepted


def _read(path: Path) -> list[bytes]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"DBOS_AUTH_TOKEN_FILE={path}: {error}") from error
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(tokens) > _TOKENS_MAX:
        raise ConfigurationError(
            f"DBOS_AUTH_TOKEN_FILE={path}: has {len(tokens)} tokens, the limit is {_TOKENS_MAX}"
        )
    return [_SCHEME + token.encode() for token in tokens]
