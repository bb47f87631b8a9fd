"""What ``--result FILE`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import soak
from tests.support.result_files import command_line, kept_in


def test_a_result_file_has_the_command_and_all_that_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "soak.md"
    with kept_in(path, "python -m tests.chaos.soak"):
        print("| minute |")
        print("| 0.8 |", flush=True)
        assert path.read_text(encoding="utf-8").endswith("| minute |\n| 0.8 |\n"), "line by line"
    print("afterwards")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# `python -m tests.chaos.soak`\n\n2")
    assert " commit " in text
    assert "afterwards" not in text
    assert capsys.readouterr().out == "| minute |\n| 0.8 |\nafterwards\n"


def test_without_the_option_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with kept_in(None, "python -m tests.chaos"):
        print("said")
    assert capsys.readouterr().out == "said\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--minutes", "15", "--result", "soak.md"],
        ["--result=soak.md", "--minutes", "15"],
    ],
)
def test_the_command_line_is_told_without_the_result_file(arguments: list[str]) -> None:
    line = command_line("tests.chaos.soak", arguments)
    assert line == "python -m tests.chaos.soak --minutes 15"


def test_the_soak_writes_its_table_to_the_result_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Work:
        errors: dict[str, int] = {}  # noqa: RUF012 - a stand-in that nothing changes

    figures = dict.fromkeys(
        [*soak.GROWTH_MAX, "second", "writes", "calls", "agents", "journal_entries"], 60.0
    )

    async def short(minutes: float, per_s: int) -> tuple[list[soak.Sample], Work]:
        assert (minutes, per_s) == (0.1, 1_000)
        return [figures] * 12, Work()

    monkeypatch.setattr(soak, "soak", short)
    path = tmp_path / "soak.md"
    assert soak.main(["--minutes", "0.1", "--result", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# `python -m tests.chaos.soak --minutes 0.1`\n")
    assert "| 1.0 | 60.0 | 60.0 |" in text
    assert "- errors: none" in text
