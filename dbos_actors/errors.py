"""Every error the service raises or answers with.

Two kinds are kept apart. A `RefusedError` is the domain's answer to a request
that cannot be granted; it travels in-band, in the response's ``error`` field,
with gRPC status OK. Every other `DbosError` is about the infrastructure and
becomes a gRPC status (`dbos_actors.service.methods` has the one table).
"""

from __future__ import annotations

from typing import NoReturn


class DbosError(Exception):
    """Root of every error of this package."""


def raise_sole_cause(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the one error inside ``group`` by itself, or the group if there are several."""
    error = sole_cause(group)
    if isinstance(error, BaseExceptionGroup):
        raise group
    # Its own cause stays; the group it came in is no context worth printing.
    raise error from error.__cause__


def sole_cause(error: BaseException) -> BaseException:
    """The one error inside groups of one, or ``error`` itself.

    For who opens a nursery that its callers need not know of.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


# ------------------------------------------------------------------ in-band


class RefusedError(DbosError):
    """The domain refuses the request; the text says what and why."""


class MissingFieldError(RefusedError):
    """A required field is empty or unset."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} is required")
        self.field = field


class FieldLimitError(RefusedError):
    """A field is larger than its limit."""

    def __init__(self, field: str, *, size: int, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{field} has {size} {unit}, the limit is {limit}")
        self.field = field
        self.size = size
        self.limit = limit
        self.unit = unit


class InvalidFieldError(RefusedError):
    """A field has a value outside its domain."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


class InvalidTransitionError(RefusedError):
    """A run or task cannot go from its state to the requested one."""

    def __init__(self, current: str, requested: str) -> None:
        super().__init__(f"invalid transition {current} -> {requested}")
        self.current = current
        self.requested = requested


class VersionConflictError(RefusedError):
    """An optimistic update names another version than the next one."""

    def __init__(self, *, expected: int, got: int) -> None:
        super().__init__(f"version conflict: expected {expected}, got {got}")
        self.expected = expected
        self.got = got


# ----------------------------------------------------------- infrastructure


class UnavailableError(DbosError):
    """The call cannot be served now; its outcome is unknown and it may be sent again."""


class DamagedKeyError(UnavailableError):
    """Redis executed a commit but for one command: a key holds something that it should not.

    The call may have been carried out in part. Until the key is mended a repeat fails as well.
    """

    def __init__(self, *, command: str, key: str, reason: str) -> None:
        super().__init__(
            f"the key {key} is damaged: Redis executed a commit, but not its {command} of that key "
            f"({reason}); 'dbos-actors check' says what is damaged"
        )
        self.command = command
        self.key = key
        self.reason = reason


class OverloadedError(DbosError):
    """A bounded queue is full; the call had no effect."""

    def __init__(self, queue: str, *, limit: int, unit: str) -> None:
        super().__init__(f"{queue} is full ({limit} {unit})")
        self.queue = queue
        self.limit = limit
        self.unit = unit


class QuotaError(OverloadedError):
    """Somebody's quota is used up; the call had no effect."""

    def __init__(self, whose: str, *, quota: str, retry_after_s: float | None = None) -> None:
        """``retry_after_s``: when there is room again; None: waiting alone does not help."""
        Exception.__init__(self, f"{whose} has used up the quota of {quota}")
        self.quota = quota
        self.retry_after_s = retry_after_s


class ResponseTooLargeError(DbosError):
    """The response would exceed the message limit; the call had no effect."""

    def __init__(self, *, limit: int) -> None:
        super().__init__(
            f"the response would exceed the message limit of {limit} bytes: set page_size"
        )
        self.limit = limit


class CursorError(DbosError):
    """The event log does not have what is behind a cursor."""

    def __init__(self, cursor: str, problem: str, again: str) -> None:
        super().__init__(
            f"cursor {cursor} {problem}. Read the present state with Get and List calls, and watch "
            f"again from cursor {again}"
        )
        self.cursor = cursor
        self.again = again

    @classmethod
    def too_old(cls, cursor: str, oldest: str) -> CursorError:
        """Events behind it have been dropped; ``oldest`` is the first one that is kept."""
        problem = (
            f"is too old: events behind it are no longer kept (DBOS_MAX_EVENTS), the oldest one "
            f"has cursor {oldest}"
        )
        return cls(cursor, problem, "0, which is before that one")

    @classmethod
    def ahead(cls, cursor: str, last: str) -> CursorError:
        """The log has never come so far, or has lost its end."""
        return cls(cursor, f"is ahead of the event log, which ends at cursor {last}", last)


# ------------------------------------------------------------------ process


class ConfigurationError(DbosError):
    """A setting has an unusable value, or settings contradict each other."""


class CannotListenError(ConfigurationError):
    """An address cannot be listened on."""

    def __init__(self, address: str, cause: OSError) -> None:
        super().__init__(f"cannot listen on {address}: {cause.strerror or cause}")
        self.address = address


class StoreUnreachableError(DbosError):
    """Redis could not be reached at start."""

    said = "cannot reach Redis at {address}: {cause}"
    advice = (
        "Start one there, set REDIS_ADDR, or use --embedded for a private one; "
        "--wait-for-redis retries"
    )
    """What an operator can do about it."""

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(self.said.format(address=address, cause=cause))
        self.address = address
        self.cause = cause


class NotRedisError(StoreUnreachableError):
    """Somebody listens there who does not speak plain Redis."""

    said = "what listens at {address} does not answer as Redis does: {cause}"
    advice = "Check host and port in REDIS_ADDR. A Redis that speaks TLS needs a rediss:// address"


class StoreTlsError(StoreUnreachableError):
    """The TLS handshake with Redis failed."""

    said = "cannot agree on TLS with Redis at {address}: {cause}"
    advice = (
        "Use redis:// for a Redis without TLS; name its authorities by "
        "'?ssl_ca_certs=FILE' in REDIS_ADDR if they are not the system's"
    )


class StoreRefusesError(StoreUnreachableError):
    """Redis answers, and refuses the user, the password, the database or the write."""

    said = "Redis at {address} refuses this server: {cause}"
    advice = (
        "Check user, password and database in REDIS_ADDR, as in "
        "redis://USER:PASSWORD@HOST:PORT/0, and the user's rights"
    )


class UnsafeStoreError(DbosError):
    """Redis is configured in a way that can lose acknowledged writes."""


class UnusableStoreError(DbosError):
    """Redis holds something that this program cannot build on; nothing was changed."""


class OwnedElsewhereError(DbosError):
    """Another live server owns the store."""

    def __init__(self, owner: str) -> None:
        super().__init__(f"the store is owned by {owner}")
        self.owner = owner


class FencedError(DbosError):
    """Another server has taken the store over; this one must stop."""
