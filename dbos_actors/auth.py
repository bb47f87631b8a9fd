"""Bearer tokens: who may call, by a file of tokens (RFC 6750, section 2.1).

With ``DBOS_AUTH_TOKEN_FILE`` every call needs ``authorization: Bearer <token>`` with
one of the file's tokens, except health checks, which load balancers make. The file
is looked at every second, so that tokens are rotated without a restart: add the
new one, move the clients, remove the old one.
"""

from __future__ import annotations

from hmac import compare_digest
from pathlib import Path
from typing import Any, NoReturn

import structlog
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.errors import ConfigurationError
from dbos_actors.rpc.interceptors import Interceptor, StreamHandler, UnaryHandler
from dbos_actors.rpc.unary import UnaryCall

logger = structlog.get_logger(__name__)

_EXEMPT = "/grpc.health.v1.Health/"

_RELOAD_S = 1.0

_TOKENS_MAX = 100
"""Each call is compared with every token, whichever fits, so that time tells nothing."""


class BearerAuth(Interceptor):
    """Answers UNAUTHENTICATED to whoever does not present a token of the file."""

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

    def unary(self, path: str, handler: UnaryHandler) -> UnaryHandler:
        if path.startswith(_EXEMPT):
            return handler

        def authenticated(call: UnaryCall) -> None:
            if self._is_accepted(call.header(b"authorization")):
                handler(call)
            else:
                raise _refusal()

        return authenticated

    def stream(self, path: str, handler: StreamHandler) -> StreamHandler:
        if path.startswith(_EXEMPT):
            return handler

        async def authenticated(stream: Any) -> None:
            if not self._is_accepted(dict(stream.headers).get(b"authorization")):
                raise _refusal()
            await handler(stream)

        return authenticated

    def _is_accepted(self, presented: bytes | None) -> bool:
        accepted = False
        for expected in self._accepted:
            accepted |= compare_digest(presented or b"", expected)
        return accepted


def _refusal() -> GRPCError:
    return GRPCError(Status.UNAUTHENTICATED, "a valid bearer token is required")


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
