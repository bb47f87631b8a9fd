"""Files that are loaded again when they have changed, without a restart of the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")

_Stamp: TypeAlias = tuple[int, int, int] | None
"""Modification time, size and inode of a file; None if there is none."""


class ReloadingFiles(Generic[T]):
    """What some files say, such as a certificate and its key, which belong together."""

    __slots__ = ("_load", "_loaded", "_paths", "_seen", "value")

    def __init__(self, load: Callable[[], T], *paths: Path) -> None:
        """``load`` reads the files at ``paths``. Raises what it raises."""
        self._load = load
        self._paths = paths
        self._loaded = self._seen = self._stamps()
        self.value = load()
        """What was loaded last, with success."""

    def reload(self, *, stable: bool = False) -> bool:
        """Load the files again if they have changed since they were loaded; whether it was done.

        With ``stable``, files are loaded only if they are the same as at the last look, because a
        file that is being written may be empty at first. Raises what ``load`` raises; the value
        then stays as it was, and the files are not loaded again before their next change.
        """
        before, self._seen = self._seen, self._stamps()
        if self._seen == self._loaded or (stable and self._seen != before):
            return False
        self._loaded = self._seen
        self.value = self._load()
        return True

    def _stamps(self) -> list[_Stamp]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
