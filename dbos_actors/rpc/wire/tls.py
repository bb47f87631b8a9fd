"""TLS: a server's context, one that follows its files, and the filter on a connection's bytes.

The filter does no I/O: it works on OpenSSL's buffers in memory. So a connection with TLS reads from
and writes to its socket in the same way as one without.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from dbos_actors.loggers import get_logger
from dbos_actors.reloading import ReloadingFiles

log = get_logger(__name__)

ContextProvider: TypeAlias = Callable[[], ssl.SSLContext]
"""Asked once per connection, so that a new certificate serves every new connection."""

ALPN = "h2"
ALPN_HTTP1 = "http/1.1"

_READ_BYTES = 64 * 1024


class AlpnError(Exception):
    """The peer does not speak HTTP/2."""


def server_context(
    certificate: Path, key: Path, *, client_authorities: Path | None = None
) -> ssl.SSLContext:
    """A context for a server: TLS 1.2 or later, HTTP/2 and HTTP/1.1.

    With ``client_authorities`` (PEM), every client must have a certificate signed by one of
    them (mutual TLS). Raises OSError and ssl.SSLError for files that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 9113, 9.2.2 forbids most TLS 1.2 suites: keep those with forward secrecy and AEAD.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([ALPN, ALPN_HTTP1])
    context.load_cert_chain(certificate, key)
    if client_authorities is not None:
        context.load_verify_locations(client_authorities)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class ReloadingContext:
    """A `ContextProvider` that follows its files.

    A change is noticed at the next connection. Files that cannot be used (half written, key
    and certificate not of one pair) are logged once, and the last good ones stay in use.
    """

    def __init__(
        self, certificate: Path, key: Path, *, client_authorities: Path | None = None
    ) -> None:
        self._certificate = certificate
        load = partial(server_context, certificate, key, client_authorities=client_authorities)
        paths = (path for path in (certificate, key, client_authorities) if path is not None)
        self._files = ReloadingFiles(load, *paths)

    def __call__(self) -> ssl.SSLContext:
        """The context for a new connection."""
        try:
            if self._files.reload():
                log.info("certificate reloaded", path=str(self._certificate))
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            log.error("certificate not reloaded", path=str(self._certificate), error=str(error))  # noqa: TRY400 - the text says it all
        return self._files.value


class TlsFilter:
    """TLS on one connection's bytes. Raises ssl.SSLError on bytes that are none.

    The server's side, or (``server_side=False``) the client's, which begins with
    ``open(b"")`` and checks the server's certificate for ``server_hostname``.
    """

    __slots__ = ("_incoming", "_object", "_outgoing", "_ready")

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = True,
        server_hostname: str | None = None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self._ready = False

    def open(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Decrypt what came. A client's side raises `AlpnError` if the server speaks no h2."""
        self._incoming.write(data)
        if not self._ready and not self._handshake():
            return
        while True:
            try:
                plain = self._object.read(_READ_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                return
            if not plain:
                return
            yield plain

    def _handshake(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if not self._object.server_side and not self.is_http2:
            raise AlpnError
        self._ready = True
        return True

    def seal(self, data: bytes) -> bytes:
        """Encrypt, after whatever TLS itself has to say."""
        if data and self._ready:
            self._object.write(data)
        return self._outgoing.read()

    def close(self) -> bytes:
        """The last bytes to send: close_notify, which says that nothing was cut off."""
        if self._ready:
            with suppress(ssl.SSLError):
                self._object.unwrap()
        return self._outgoing.read()

    @property
    def is_http2(self) -> bool:
        """Whether both sides have agreed on HTTP/2, once the handshake is complete."""
        return self._object.selected_alpn_protocol() == ALPN

    @property
    def ready(self) -> bool:
        """Whether the handshake is complete."""
        return self._ready

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """What the peer proved to be, if it was asked."""
        return self._object.getpeercert() or None
