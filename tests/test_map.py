"""The map of the tests, tests/README.md, is current."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parent


def long_tests() -> dict[str, list[str]]:
    """The tests that `.ci/run long` runs: file to names of functions."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        is_long = any(
            isinstance(node, ast.Assign) and "mark.long" in ast.unparse(node) for node in tree.body
        )
        names = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test_")
            and (is_long or any("mark.long" in ast.unparse(one) for one in node.decorator_list))
        ]
        if names:
            found[str(path.relative_to(TESTS))] = names
    return found


def test_the_map_of_tests_lists_the_long_ones() -> None:
    text = (TESTS / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## The long tests\n")[2].partition("\n## ")[0]
    found = long_tests()
    assert found
    files = re.findall(r"^- `(.+)`$", section, re.MULTILINE)
    names = re.findall(r"^  `(.+)`$", section, re.MULTILINE)
    assert sorted(files) == sorted(found)
    assert sorted(names) == sorted(name for names in found.values() for name in names)


def test_the_map_of_tests_names_every_folder() -> None:
    text = (TESTS / "README.md").read_text(encoding="utf-8")
    folders = {path.parent for path in TESTS.rglob("*.py")} - {TESTS}
    tops = {TESTS / path.relative_to(TESTS).parts[0] for path in folders}
    assert {path.name for path in tops if f"`{path.name}/" not in text} == set()
