"""The lines of the token file: what one says, and what one may say.

Three kinds of lines stand in one file, in any order:

- A JSON object: a principal, its role, and how it shows who it is: by a token, of which the file
  has the SHA-256 hash, or by a name in its client certificate.
- A token as it is. It belongs to the principal `PLAIN_NAME`, whose role is ``control``.
- A comment, which begins with ``#``, or nothing.

A plain SHA-256 is enough for the tokens that `new_token` makes. They are 256 random bits, so nobody
finds one by trying, with however fast a hash. A slow hash is for passwords, which people choose.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Final, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from dbos_actors.access.roles import Role
from dbos_actors.errors import ConfigurationError

ENTRIES_MAX: Final = 1_000
"""In one file. It is read in the server's loop, which takes 10 ms for so many."""

PLAIN_NAME: Final = "plain"
"""The principal of every token that stands in the file as it is."""

_ID_DIGITS: Final = 8

_TOKEN_PREFIX: Final = "dbos_"  # noqa: S105 - so that scanners for leaked secrets find tokens
_TOKEN_BYTES: Final = 32

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


class Entry(BaseModel):
    """A principal and one way for it to show who it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}$")]
    role: Role
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the token, in hexadecimal."""
    certificate: (
        Annotated[str, StringConstraints(pattern=r"^(CN|DNS|URI|IP|email):.+$", max_length=512)]
        | None
    ) = None
    """A name in the client's certificate, as `dbos_actors.rpc.wire.peers.names_of` writes it."""
    created: AwareDatetime | None = None
    created_by: Annotated[str, Field(max_length=256)] = ""
    """Who ran the command that made the entry: a name of the operating system."""
    expires: AwareDatetime | None = None
    """The entry counts before this moment only; None: for ever."""

    calls_per_second: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    """Of the principal, instead of the setting; 0 is no limit."""
    bytes_per_second: Annotated[int, Field(ge=0, le=1 << 40)] | None = None
    """Likewise, of requests and answers together."""

    @model_validator(mode="after")
    def _shows_one_thing(self) -> Self:
        if (self.sha256 is None) == (self.certificate is None):
            raise ValueError("needs either sha256 or certificate")
        return self

    @property
    def id(self) -> str:
        """Names the entry among others of its principal; tells nothing about the token."""
        if self.sha256 is not None:
            return self.sha256[:_ID_DIGITS]
        return digest_of(str(self.certificate).encode())[:_ID_DIGITS]

    def has_expired(self, now_s: float) -> bool:
        """Whether it counts no more at a time in Unix seconds."""
        return self.expires is not None and self.expires.timestamp() <= now_s

    def line(self) -> str:
        """The entry as it stands in the file."""
        return self.model_dump_json(exclude_none=True, exclude_defaults=True)


def digest_of(token: bytes) -> str:
    """What the file has of a token."""
    return sha256(token).hexdigest()


def new_token() -> str:
    """A token of 256 random bits."""
    return _TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def now() -> datetime:
    """The present second."""
    return datetime.now(UTC).replace(microsecond=0)


def parsed(text: str, source: str) -> Iterator[tuple[str, Entry | None]]:
    """Each line of a token file with its entry; None for comments and empty lines.

    Raises `ConfigurationError`, which begins with ``source``, if a line is none of those that may
    stand there, if there are too many, or if a name has two roles.
    """
    roles: dict[str, Role] = {}
    count = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        entry = None
        if line and not line.startswith("#"):
            entry = _entry(line, f"{source}: line {number}")
            count += 1
            if roles.setdefault(entry.name, entry.role) is not entry.role:
                raise ConfigurationError(
                    f"{source}: line {number}: {entry.name} has the role {entry.role.value} here "
                    f"and {roles[entry.name].value} above; a name has one role"
                )
        yield raw, entry
    if count > ENTRIES_MAX:
        raise ConfigurationError(f"{source}: has {count} tokens, the limit is {ENTRIES_MAX}")


def _entry(line: str, place: str) -> Entry:
    if not line.startswith("{"):
        return Entry(name=PLAIN_NAME, role=Role.CONTROL, sha256=digest_of(line.encode()))
    try:
        entry = Entry.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{place}: {field + ': ' if field else ''}{first['msg']}"
        ) from None
    if entry.name == PLAIN_NAME:
        raise ConfigurationError(f"{place}: the name {PLAIN_NAME} is that of plain tokens")
    return entry
