"""Changes of the token file, for ``dbos-actors token``.

A change writes a whole new file beside the old one and then takes its place in one step, so a
server that reads it meanwhile finds the old one or the new one. Two changes at once wait for each
other, by a lock on the folder. A file that is made is for its user alone (0600). One that exists
keeps its owner, and keeps the right of its group to read it; every other right is taken away.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dbos_actors.access.entries import PLAIN_NAME, Entry, parsed
from dbos_actors.errors import ConfigurationError

_OWN_MODE: Final = 0o600
_KEPT_MODE: Final = 0o640


def read(path: Path) -> list[Entry]:
    """The entries of the file. Raises `ConfigurationError` if it cannot be read or understood."""
    return [entry for _, entry in _lines(path) if entry is not None]


def add(path: Path, entry: Entry) -> None:
    """Append an entry; the file is made if there is none.

    Raises `ConfigurationError` if the name has another role, if the file has that token or
    certificate already, or if it cannot be read or written.
    """
    with _locked(path):
        lines = _lines(path) if path.exists() else []
        for _, other in lines:
            if other is None:
                continue
            if entry.certificate is not None and other.certificate == entry.certificate:
                raise ConfigurationError(
                    f"{path}: the certificate {entry.certificate} belongs to {other.name}"
                )
        text = "".join(f"{line}\n" for line in [*(raw for raw, _ in lines), entry.line()])
        for _ in parsed(text, str(path)):
            pass
        _replace(path, text)


def revoke(path: Path, name_or_id: str) -> list[Entry]:
    """Take out every entry of a name, or the one of an id; returns what was taken out.

    Raises `ConfigurationError` if there is none, or if the file cannot be read or written.
    """
    with _locked(path):
        lines = _lines(path)
        revoked = [
            entry
            for _, entry in lines
            if entry is not None and name_or_id in (entry.name, entry.id)
        ]
        if not revoked:
            raise ConfigurationError(f"{path}: nobody has the name or id {name_or_id!r}")
        _replace(path, "".join(f"{raw}\n" for raw, entry in lines if entry not in revoked))
        return revoked


def kind(entry: Entry) -> str:
    """How the principal of an entry shows who it is, for people."""
    if entry.certificate is not None:
        return f"certificate {entry.certificate}"
    return "plain token" if entry.name == PLAIN_NAME else "token"


def _lines(path: Path) -> list[tuple[str, Entry | None]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return list(parsed(text, str(path)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other changes of files in the folder away. Raises `ConfigurationError`."""
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    """Have the file hold ``text``, in one step. Raises `ConfigurationError`."""
    target = path.resolve()  # a link stays one
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), _OWN_MODE)
                with suppress(FileNotFoundError):
                    before = target.stat()
                    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(file.fileno(), before.st_uid, before.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode) & _KEPT_MODE | _OWN_MODE)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error}") from error
