"""Where Redis is and how to get a stream to it.

`Connector` is the seam: the real one reads a ``REDIS_ADDR``; a simulated Redis
gives another. Both must pass ``tests/store/contract_connector.py``.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio
from redis.connection import parse_url

from dbos_actors.errors import ConfigurationError
from dbos_actors.store.connection import ConnectionLostError, TlsError
from dbos_actors.store.direct_stream import DirectStream

DEFAULT_PORT = 6379

# A Redis without TLS takes the first bytes of a handshake for half a command, and waits. Shorter
# than `StoreSettings.connect_timeout_s`, so that the error says what was waited for.
TLS_HANDSHAKE_S = 3.0
URL_SCHEMES = ("redis://", "rediss://", "unix://")


class Connector(Protocol):
    """Opens streams to one Redis."""

    @property
    def address(self) -> str:
        """For humans and logs; never holds a password."""
        ...

    @property
    def username(self) -> str | None: ...

    @property
    def password(self) -> str | None: ...

    @property
    def database(self) -> int: ...

    async def connect(self) -> trio.abc.Stream:
        """A new stream, after any TLS handshake; the caller closes it and limits the time.

        Raises:
            ConnectionLostError: nobody answers there, with the reason.
        """
        ...


@dataclass(frozen=True, slots=True)
class TcpConnector:
    """Redis on a TCP port, with TLS if ``tls`` is given."""

    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        suffix = f"/{self.database}" if self.database else ""
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}{suffix}"

    async def connect(self) -> trio.abc.Stream:
        try:
            stream = await trio.open_tcp_stream(self.host, self.port)
        except OSError as error:
            raise ConnectionLostError(_reason(error)) from error
        if self.tls is None:
            return DirectStream(stream)
        secured = trio.SSLStream(stream, self.tls, server_hostname=self.host)
        try:
            with trio.fail_after(TLS_HANDSHAKE_S):
                await secured.do_handshake()
        except trio.TooSlowError:
            await trio.aclose_forcefully(secured)
            raise TlsError(f"TLS: no answer within {TLS_HANDSHAKE_S:g} s") from None
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(secured)
            raise TlsError(f"TLS: {error.__cause__ or error}") from error
        except BaseException:
            await trio.aclose_forcefully(secured)
            raise
        return secured


@dataclass(frozen=True, slots=True)
class UnixConnector:
    """Redis on a unix socket."""

    path: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0

    @property
    def address(self) -> str:
        return f"unix://{self.path}" + (f"?db={self.database}" if self.database else "")

    async def connect(self) -> trio.abc.Stream:
        try:
            return DirectStream(await trio.open_unix_socket(self.path))
        except OSError as error:
            raise ConnectionLostError(_reason(error)) from error


def connector_for(address: str) -> TcpConnector | UnixConnector:
    """What a ``REDIS_ADDR`` means.

    ``host``, ``host:port``, or a ``redis://``, ``rediss://`` or ``unix://`` URL with optional
    user, password and database, as redis-py reads them. ``rediss://`` takes the query parameters
    ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths), ``ssl_cert_reqs`` (``none`` or
    ``required``) and ``ssl_check_hostname``.

    Raises:
        ConfigurationError: it is none of these.
    """
    address = address.strip()
    if "://" not in address:
        address = f"redis://{address}"
    elif not address.startswith(URL_SCHEMES):
        raise ConfigurationError(f"REDIS_ADDR must be host:port or one of {', '.join(URL_SCHEMES)}")
    try:
        options: dict[str, Any] = dict(parse_url(address))  # type: ignore[no-untyped-call]
        database = int(options.get("db", 0))
    except ValueError:
        # Its text may quote the URL, and so the password.
        raise ConfigurationError("REDIS_ADDR is not a usable address") from None
    credentials: dict[str, Any] = {
        "username": options.get("username"),
        "password": options.get("password"),
        "database": database,
    }
    if address.startswith("unix://"):
        if not options.get("path"):
            raise ConfigurationError("REDIS_ADDR names no socket path")
        return UnixConnector(options["path"], **credentials)
    return TcpConnector(
        options.get("host", "localhost"),
        int(options.get("port", DEFAULT_PORT)),
        tls=_tls_context(options) if address.startswith("rediss://") else None,
        **credentials,
    )


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"REDIS_ADDR: cannot read the TLS files: {error}") from error
    unverified = str(options.get("ssl_cert_reqs", "required")).lower() in ("none", "cert_none")
    if unverified or str(options.get("ssl_check_hostname", True)).lower() in ("false", "0", "no"):
        context.check_hostname = False
    if unverified:
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: OSError) -> str:
    """The operating system's own words, also where Trio tried several addresses."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        error = cause
    return error.strerror or str(error)
