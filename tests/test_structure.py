"""The shape of the code and of its tests: sizes of modules and functions, no circle of imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("dbos_actors", "bench", "tests")
MODULE_LINES_MAX: Final = 500
FUNCTION_LINES_MAX: Final = 60

GENERATED: Final = frozenset({"dbos_actors/api/messages.py", "dbos_actors/api/sdk"})
"""Files and folders that `python -m dbos_actors.api.generate` writes."""

EXCEPTIONS: Final[dict[str, str]] = {
    "bench/listing_costs.py::listings": "a table, one row for each listing",
}
"""What may be longer, at most five: a module's path, or ``path::function``; and the reason."""


def sources() -> Iterator[Path]:
    """Every module of the packages that a person writes."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if not GENERATED & {str(relative), *map(str, relative.parents)}:
                yield path


MODULES: Final = {str(path.relative_to(ROOT)): path for path in sources()}


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST, int]]:
    """Each function with its qualified name and its number of lines, decorators left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node, (node.end_lineno or node.lineno) - node.lineno + 1
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, prefix)


def too_long(name: str) -> list[str]:
    """The module's name if it is too long, and those of its functions that are."""
    text = MODULES[name].read_text(encoding="utf-8")
    found = [name] if len(text.splitlines()) > MODULE_LINES_MAX else []
    return found + [
        f"{name}::{function}"
        for function, _, lines in functions(ast.parse(text))
        if lines > FUNCTION_LINES_MAX
    ]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_has_over_500_lines_and_no_function_over_60(name: str) -> None:
    assert [one for one in too_long(name) if one not in EXCEPTIONS] == []


def test_every_exception_is_still_needed_and_there_are_at_most_five() -> None:
    needed = {one for name in MODULES for one in too_long(name)}
    assert set(EXCEPTIONS) - needed == set()
    assert len(EXCEPTIONS) <= 5
    assert all(EXCEPTIONS.values())


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, known: frozenset[str]) -> set[str]:
    """The modules of ``known`` that a module names in any import.

    Imports inside functions and under ``if TYPE_CHECKING`` count. That a module's package is
    imported before it does not.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = str(node.module)
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else module for name in names}
    return found & known - {dotted(path)}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or not."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in graph[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        reach[start] = seen
    groups = {
        tuple(sorted(other for other in reach[one] if one in reach[other]))
        for one in graph
        if one in reach[one]
    }
    return [list(group) for group in sorted(groups)]


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}
    assert circles(graph) == [["b", "c"], ["d"]]


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = {dotted(path): path for path in MODULES.values()}
    known = frozenset(paths)
    assert circles({name: imported(path, known) for name, path in paths.items()}) == []
