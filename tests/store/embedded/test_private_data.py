"""The data directory is for its owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dbos_actors.errors import ConfigurationError
from dbos_actors.store.embedded import (
    data,
    open_embedded,
)
from tests.store.embedded.outliving import (
    ask,
    eventually,
    names_in,
)

# ------------------------------------------------------------------- who may read it


def open_to_others(directory: Path) -> dict[str, str]:
    """What others may read or write there, by its mode; the directory itself too."""
    found = {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in (directory, *directory.rglob("*"))
        if not path.is_socket()
    }
    assert len(found) >= 6
    return {name: f"{mode:o}" for name, mode in found.items() if mode & 0o077}


async def test_nobody_else_can_read_what_is_stored(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    umask = os.umask(0)
    try:
        async with open_embedded(data_dir) as store:
            await ask(store.socket, "SET", "a", "1")
            await ask(store.socket, "BGREWRITEAOF")
            await eventually(lambda: any(data_dir.glob("appendonlydir/*.base.rdb")))
            assert open_to_others(data_dir) == {}
    finally:
        os.umask(umask)


async def test_a_directory_of_an_earlier_version_is_made_private(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with open_embedded(data_dir) as store:
        await ask(store.socket, "SET", "a", "1")
    (data_dir / "lost+found").mkdir(mode=0o700)
    for path in (data_dir, data_dir / "appendonlydir"):
        path.chmod(0o755)
    for path in (*data_dir.glob("*.lock"), *data_dir.glob("appendonlydir/*")):
        path.chmod(0o644)
    async with open_embedded(data_dir) as store:
        assert await ask(store.socket, "GET", "a") == b"1"
    assert open_to_others(data_dir) == {}


def test_an_open_directory_with_other_files_is_refused_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "homework").touch(mode=0o644)
    with pytest.raises(ConfigurationError, match=r"mode 0755.*homework.*chmod 700"):
        data.prepared(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert names_in(tmp_path) == {"homework"}
    tmp_path.chmod(0o700)
    assert data.prepared(tmp_path) == tmp_path
    assert (tmp_path / "homework").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("mode", "is_refused"), [(0o777, True), (0o705, True), (0o770, False)])
def test_a_directory_of_someone_else_is_refused_if_it_is_open_to_everybody(
    mode: int, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    if is_refused:
        with pytest.raises(ConfigurationError, match="belongs to another user"):
            data.prepared(tmp_path)
    else:
        assert data.prepared(tmp_path) == tmp_path
