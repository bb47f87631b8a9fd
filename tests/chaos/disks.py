"""Disks that fill up and disks that lose what was not synced. Both need root and Linux.

A `SmallDisk` is a tmpfs of a few MiB with ballast in it: more ballast, and it is full.

A `VolatileDisk` is a filesystem in an image file, on a loop device. What a program writes stays
in the page cache above that device until it is synced or written back, so a copy of the
image is what a real disk would hold had the power gone at that moment. `cut_power` makes such a
copy and mounts it instead: ext4 replays its journal, Redis reads what is left of its file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

VOLATILE_BYTES = 256 << 20


class NoDiskError(Exception):
    """This machine does not let us have one; the text says why."""


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise NoDiskError(f"{command[0]}: {said.strip()}") from error


def _check_root() -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise NoDiskError("mounting needs root on Linux")


class SmallDisk:
    """A tmpfs mounted on a directory."""

    def __init__(self, directory: Path, size_bytes: int = 64 << 20) -> None:
        """Raises `NoDiskError`."""
        _check_root()
        self._directory = directory
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory))

    @property
    def _ballast(self) -> Path:
        return self._directory / "ballast"

    def fill(self) -> None:
        """Leave no free byte."""
        with self._ballast.open("ab", buffering=0) as ballast:
            chunk = bytes(1 << 20)
            while chunk:
                try:
                    if ballast.write(chunk) < len(chunk):
                        chunk = chunk[: len(chunk) // 2]
                except OSError:
                    chunk = chunk[: len(chunk) // 2]

    def free(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        _run("umount", "-l", str(self._directory))


class VolatileDisk:
    """An ext4 in an image, mounted on a directory."""

    def __init__(self, directory: Path) -> None:
        """Raises `NoDiskError`."""
        _check_root()
        self._directory = directory
        self._images = tempfile.TemporaryDirectory(prefix="disk-")
        self._cuts = 0
        image = self._image()
        with image.open("wb") as file:
            file.truncate(VOLATILE_BYTES)
        try:
            _run("mkfs.ext4", "-q", "-F", str(image))
            self._mount()
        except NoDiskError:
            self._images.cleanup()
            raise

    def cut_power(self) -> None:
        """Lose everything that was not synced. Nothing may have a file open here."""
        before = self._image()
        self._cuts += 1
        _run("cp", "--sparse=always", str(before), str(self._image()))
        # Unmounting writes the rest into the image of before, which nobody reads any more.
        _run("umount", str(self._directory))
        before.unlink()
        self._mount()

    def close(self) -> None:
        _run("umount", "-l", str(self._directory))
        self._images.cleanup()

    def _image(self) -> Path:
        return Path(self._images.name) / f"{self._cuts}.img"

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image()), str(self._directory))
