"""What the head of a Connect request says, and what is wrong with it.

`read_post` and `read_get` take the fields of a request's head. They return a `ConnectRequest`, or
raise `RefusedRequestError`. A refusal has one of two forms:
- without a ``status``, it is HTTP's: the request is no Connect call of its method, and the client
  gets the HTTP status and no error body;
- with one, it is Connect's: an error in the form that the call's kind has for errors.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final
from urllib.parse import unquote_to_bytes

from grpclib.const import Status

from dbos_actors.rpc.wire.compression import GZIP, IDENTITY

TIMEOUT_DIGITS_MAX: Final = 10
"""Of ``connect-timeout-ms`` (Connect Protocol Reference, "Unary-Request")."""

_PARAMETERS_MAX: Final = 16
"""Of a GET's query: the protocol has five."""

_TEXT_MAX: Final = 64
"""Characters of a client's value that an error repeats."""


class Codec(Enum):
    """How messages are serialised; the value is the name in content types."""

    PROTO = b"proto"
    JSON = b"json"


_UNARY_TYPES: Final[Mapping[bytes, Codec]] = {
    b"application/" + codec.value: codec for codec in Codec
}
_STREAM_TYPES: Final[Mapping[bytes, Codec]] = {
    b"application/connect+" + codec.value: codec for codec in Codec
}
_CODECS: Final[Mapping[bytes, Codec]] = {codec.value: codec for codec in Codec}


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """What the head of a request says about the call."""

    codec: Codec
    is_streaming: bool
    """Whether messages are in envelopes. A unary call has one message on each side, without."""
    encoding: bytes | None
    """How the request is compressed; None: not at all."""
    accepts_gzip: bool
    timeout_s: float | None
    message: bytes | None = None
    """The request of a GET, as sent; None: it is in the body."""

    @property
    def content_type(self) -> bytes:
        """Of the response, unless it is the error of a unary call."""
        prefix = b"application/connect+" if self.is_streaming else b"application/"
        return prefix + self.codec.value


class RefusedRequestError(Exception):
    """A request that is no call; see above."""

    def __init__(
        self,
        message: str,
        *,
        http_status: int = 200,
        status: Status | None = None,
        fields: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.stream_type: bytes | None = None
        """The content type of the answer, if it is a stream's."""
        self.http_status = http_status
        self.status = status
        self.fields = fields


def is_connect_type(content_type: bytes) -> bool:
    """Whether a request of this type means to be a Connect call, of whatever kind."""
    kind = _essence(content_type)
    return kind in _UNARY_TYPES or kind in _STREAM_TYPES


def read_post(
    fields: Mapping[bytes, bytes], *, is_streaming: bool, has_json: bool
) -> ConnectRequest:
    """The call that a POST's head begins. Raises `RefusedRequestError`.

    ``is_streaming``: whether the method has a stream on either side. ``has_json``: whether its
    messages have a JSON form.
    """
    types = _STREAM_TYPES if is_streaming else _UNARY_TYPES
    content_type = fields.get(b"content-type", b"")
    codec = types.get(_essence(content_type))
    if codec is None or (codec is Codec.JSON and not has_json):
        accepted = [name for name, one in types.items() if has_json or one is not Codec.JSON]
        raise RefusedRequestError(
            f"content-type {_shown(content_type)} is not served here, "
            f"but {b' and '.join(accepted).decode('ascii')}",
            http_status=415,
            fields=[(b"accept-post", b", ".join(accepted))],
        )
    prefix = b"connect-" if is_streaming else b""
    try:
        _check_version(fields.get(b"connect-protocol-version"))
        return ConnectRequest(
            codec=codec,
            is_streaming=is_streaming,
            encoding=_encoding(fields.get(prefix + b"content-encoding"), prefix),
            accepts_gzip=takes_gzip(fields.get(prefix + b"accept-encoding")),
            timeout_s=_timeout(fields.get(b"connect-timeout-ms")),
        )
    except RefusedRequestError as refused:
        refused.stream_type = _essence(content_type) if is_streaming else None
        raise


def read_get(fields: Mapping[bytes, bytes], query: bytes, *, has_json: bool) -> ConnectRequest:
    """The call that a GET of a unary method makes. Raises `RefusedRequestError`."""
    parameters = _parameters(query)
    codec = _CODECS.get(parameters.get(b"encoding", b""))
    if codec is None or (codec is Codec.JSON and not has_json):
        accepted = "proto or json" if has_json else "proto"
        raise RefusedRequestError(
            f"the query's encoding is {_shown(parameters.get(b'encoding', b''))}, "
            f"and must be {accepted}",
            http_status=415,
        )
    version = parameters.get(b"connect")
    if version is not None and version != b"v1":
        raise _invalid(f"the query's connect is {_shown(version)}, and must be v1")
    message = parameters.get(b"message")
    if message is None:
        raise _invalid("the query has no message")
    is_base64 = parameters.get(b"base64", b"0")
    if is_base64 not in {b"0", b"1"}:
        raise _invalid(f"the query's base64 is {_shown(is_base64)}, and must be 1 or absent")
    return ConnectRequest(
        codec=codec,
        is_streaming=False,
        encoding=_encoding(parameters.get(b"compression")),
        accepts_gzip=takes_gzip(fields.get(b"accept-encoding")),
        timeout_s=_timeout(fields.get(b"connect-timeout-ms")),
        message=_from_base64(message) if is_base64 == b"1" else message,
    )


def takes_gzip(accept_encoding: bytes | None) -> bool:
    """Whether an ``accept-encoding`` has gzip, and does not rule it out by ``q=0``."""
    if accept_encoding is None or GZIP not in accept_encoding:
        return False
    for part in accept_encoding.split(b","):
        name, _, weight = part.partition(b";")
        if name.strip().lower() == GZIP:
            quality = weight.replace(b" ", b"").partition(b"q=")[2]
            return not quality or bool(quality.strip(b"0."))
    return False


def _essence(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


def _check_version(version: bytes | None) -> None:
    if version is not None and version != b"1":
        raise _invalid(f"connect-protocol-version is {_shown(version)}, and must be 1")


def _encoding(encoding: bytes | None, prefix: bytes = b"") -> bytes | None:
    if encoding is None or encoding in {b"", IDENTITY}:
        return None
    if encoding != GZIP:
        raise RefusedRequestError(
            f"compression {_shown(encoding)} is not supported, but gzip is",
            status=Status.UNIMPLEMENTED,
            fields=[(prefix + b"accept-encoding", GZIP)],
        )
    return encoding


def _timeout(value: bytes | None) -> float | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > TIMEOUT_DIGITS_MAX:
        raise _invalid(
            f"connect-timeout-ms is {_shown(value)}, and must be a number of at most "
            f"{TIMEOUT_DIGITS_MAX} digits"
        )
    return int(value) / 1000


def _parameters(query: bytes) -> dict[bytes, bytes]:
    """A query's parameters by name, decoded; of one that is there twice, the first."""
    parts = query.split(b"&", _PARAMETERS_MAX)
    if len(parts) > _PARAMETERS_MAX:
        raise _invalid(f"the query has more than {_PARAMETERS_MAX} parameters")
    found: dict[bytes, bytes] = {}
    for part in parts:
        name, _, value = part.partition(b"=")
        found.setdefault(name, unquote_to_bytes(value.replace(b"+", b" ")))
    return found


def _from_base64(text: bytes) -> bytes:
    """Decode base64url, with or without padding; the alphabet of plain base64 is read too."""
    usual = text.replace(b" ", b"+").replace(b"+", b"-").replace(b"/", b"_").rstrip(b"=")
    try:
        if usual.translate(None, _BASE64URL):
            raise _invalid("the query's message is not base64url")
        return urlsafe_b64decode(usual + b"=" * (-len(usual) % 4))
    except (Base64Error, ValueError) as error:
        raise _invalid("the query's message is not base64url") from error


_BASE64URL: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _invalid(message: str) -> RefusedRequestError:
    return RefusedRequestError(message, status=Status.INVALID_ARGUMENT)


def _shown(value: bytes) -> str:
    """A client's value as an error repeats it."""
    return repr(value[:_TEXT_MAX].decode("ascii", "replace"))
