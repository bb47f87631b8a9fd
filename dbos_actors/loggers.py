"""Where log lines go: as the program has set up structlog, or else to the `logging` of Python.

A library must not decide that for the program that it is part of, and must not need to be set up.
In a program that has configured structlog, as `dbos-actors` has, each line is an event of it. In
any other program it is a record of `logging`, under the name of its module: ``event key=value``.
If that is not set up either, Python writes warnings and errors to stderr, and nothing else. A
record never holds the values of local variables.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def get_logger(name: str) -> Any:
    """The logger of a module, with structlog's methods: ``logger.info("event", key=value)``."""
    return _Logger(name)


class _Logger:
    """Looks at each line again where it goes: a program may set structlog up at any time."""

    __slots__ = ("_record_logger", "_structlog_logger")

    def __init__(self, name: str) -> None:
        self._structlog_logger = structlog.get_logger(name)
        self._record_logger = structlog.wrap_logger(
            logging.getLogger(name),
            processors=_RECORD_PROCESSORS,
            wrapper_class=structlog.stdlib.BoundLogger,
        )

    def __getattr__(self, method: str) -> Any:
        if structlog.is_configured():
            return getattr(self._structlog_logger, method)
        return getattr(self._record_logger, method)


def _as_record(
    _logger: WrappedLogger, _method: str, event: EventDict
) -> tuple[tuple[str], dict[str, Any]]:
    """The arguments with which a method of `logging.Logger` is called for an event."""
    exc_info = event.pop("exc_info", None)
    words = [str(event.pop("event", "")), *(f"{key}={value!r}" for key, value in event.items())]
    return (" ".join(words),), {"exc_info": exc_info}


_RECORD_PROCESSORS: Final[list[Processor]] = [structlog.stdlib.filter_by_level, _as_record]
