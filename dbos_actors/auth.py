"""Bearer tokens: who may call, by a file of tokens (RFC 6750, section 2.1).

With ``DBOS_AUTH_TOKEN_FILE`` every call needs ``authorization: Bearer <token>`` with
one of the file's tokens, except health checks, which load balancers make. The server asks
when a call's headers arrive (`dbos_actors.rpc.admission`). The file
is looked at every second, so that tokens are rotated without a restart: add the
new one, move the clients, remove the old one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from hmac import compare_digest
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from dbos_actors.errors import ConfigurationError

logger = structlog.get_logger(__name__)

_RELOAD_S = 1.0

_TOKENS_MAX = 100
"""Each call is compared with every token, whichever fits, so that time tells nothing."""


class BearerAuth:
    """A `dbos_actors.rpc.admission.Authenticator`: knows who presents a token of the file."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises `ConfigurationError` if that cannot be done or it has no token."""
        self._path = path
        self._stamp = _stamp(path)
        # What an `authorization` header must be, each.
        self._accepted = _read(path)

    async def watch(self) -> NoReturn:
        """Follow the file, until cancelled; one that cannot be used changes nothing."""
        while True:
            await trio.sleep(_RELOAD_S)
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                self._accepted = _read(self._path)
            except ConfigurationError as error:
                logger.error("tokens_not_reloaded", error=str(error))  # noqa: TRY400 - it says all
            else:
                logger.info("tokens_reloaded", tokens=len(self._accepted))

    def identify(self, headers: Mapping[bytes, bytes]) -> Hashable | None:
        """The token that a call presents, if it is one of the file's."""
        presented = headers.get(b"authorization", b"")
        client = None
        for expected in self._accepted:
            if compare_digest(presented, expected):
                client = expected
        return client

    def is_valid(self, client: Hashable) -> bool:
        """Whether a token is still one of the file's."""
        return client in self._accepted


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> list[bytes]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"DBOS_AUTH_TOKEN_FILE={path}: {error}") from error
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not 0 < len(tokens) <= _TOKENS_MAX:
        raise ConfigurationError(
            f"DBOS_AUTH_TOKEN_FILE={path}: has {len(tokens)} tokens, must have 1 to {_TOKENS_MAX}"
        )
    return [b"Bearer " + token.encode() for token in tokens]
