"""Times of day that clients report, held against the server's clock.

Retention deletes by ``received_at``, and ``last_seen`` never goes back. So a record with a time in
the future would never grow old enough, and under a limit of bytes honest records would be deleted
in its place. Times in the past are taken as they are, since old records may be imported.
"""

from __future__ import annotations

from typing import Final

from dbos_actors.errors import InvalidFieldError

AHEAD_S_MAX: Final = 86_400
"""How far ahead of the server's clock a reported time may be, in seconds. No clock that anybody
looks after is a day off; milliseconds, taken for seconds, are 50,000 years ahead."""


def not_ahead(field: str, time_s: int, now_s: int) -> int:
    """The time to record for one that is ahead of ``now_s``; both in Unix seconds.

    A clock that is a little fast is not the sender's fault: the time becomes ``now_s``. Raises
    `InvalidFieldError`, naming ``field``, if it is ahead by more than `AHEAD_S_MAX`.
    """
    if time_s <= now_s:
        return time_s
    if time_s > now_s + AHEAD_S_MAX:
        raise InvalidFieldError(
            field,
            f"is {time_s}, which is more than a day ahead of the server's clock ({now_s}); "
            "times are in Unix seconds",
        )
    return now_s
