"""Where log lines go: stderr, as text for people or JSON for machines.

Ours are structlog events; what libraries say through `logging` comes out alike. A line that
cannot be written, because stderr is a file on a full disk or nobody reads it any more, is
dropped: the server goes on.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.typing import Processor


class _Lossy:
    """A stream that drops what cannot be written; otherwise the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def configure_logs(*, level: str, json: bool, stream: TextIO) -> None:
    """Sends every log line of at least ``level`` to ``stream``."""
    stream = cast("TextIO", _Lossy(stream))
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[Processor]
    if json:
        renderers = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        # Plain tracebacks: rich ones show local variables, and those hold what clients sent.
        renderers = [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
