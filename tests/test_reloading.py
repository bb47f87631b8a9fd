from __future__ import annotations

from pathlib import Path

import pytest

from dbos_actors.reloading import ReloadingFiles


def test_files_are_loaded_again_once_after_each_change(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    loads = []

    def load() -> str:
        loads.append(one.read_text() + (other.read_text() if other.exists() else ""))
        return loads[-1]

    files = ReloadingFiles(load, one, other)
    assert (files.value, files.reload()) == ("1", False)
    one.write_text("1, changed")
    assert (files.reload(), files.value, files.reload()) == (True, "1, changed", False)
    other.write_text("2")
    assert (files.reload(), files.value) == (True, "1, changed2")
    other.unlink()
    assert (files.reload(), files.value) == (True, "1, changed")
    assert len(loads) == 4


def test_files_that_cannot_be_loaded_leave_the_value_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    files = ReloadingFiles(lambda: int(path.read_text()), path)
    path.write_text("many")
    with pytest.raises(ValueError, match="many"):
        files.reload()
    assert (files.value, files.reload()) == (1, False)
    path.write_text("23456")
    assert (files.reload(), files.value) == (True, 23456)


def test_a_file_that_is_being_written_is_loaded_once_it_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("old")
    files = ReloadingFiles(path.read_text, path)
    path.write_text("")
    assert not files.reload(stable=True)
    path.write_text("new text")
    assert (files.reload(stable=True), files.value) == (False, "old")
    assert (files.reload(stable=True), files.value) == (True, "new text")
    assert not files.reload(stable=True)
