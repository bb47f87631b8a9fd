"""What the documents, the generated code and the layers say is true."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from dbos_actors.api import generate
from dbos_actors.client.environment import CLIENT_VARIABLES
from dbos_actors.server import open_supervisor
from dbos_actors.settings import Settings, descriptions, markdown
from dbos_actors.store.embedded import open_embedded

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def fenced(text: str, language: str, *, containing: str) -> str:
    """The one block of a page in ``language`` that has ``containing`` in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


def indented() -> list[str]:
    """The lines of the README that are set as commands or output."""
    return [line.removeprefix("    ") for line in README.splitlines() if line.startswith("    ")]


# ------------------------------------------------------------------------- settings


def test_every_setting_is_documented_as_it_is() -> None:
    assert markdown() in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), (
        "run: dbos-actors settings --markdown, and replace the table in docs/settings.md"
    )


def test_every_setting_that_a_document_names_exists() -> None:
    known = {item.variable for item in descriptions()} | set(CLIENT_VARIABLES)
    for path in DOCUMENTS:
        named = set(re.findall(r"\bDBOS_[A-Z_]+\b", path.read_text(encoding="utf-8")))
        assert named <= known, f"{path.name}: {named - known}"


def test_no_module_reads_the_environment_behind_the_settings() -> None:
    for path in (ROOT / "dbos_actors").rglob("*.py"):
        reads = re.findall(r"os\.(?:environ|getenv)\b.*", path.read_text(encoding="utf-8"))
        if path.parts[-2:] == ("client", "environment.py"):  # it says what clients read
            continue
        if path.name == "commands.py":  # it looks for misspelt names
            reads = [read for read in reads if "unknown_variables" in read]
        assert not reads, path


# --------------------------------------------------------------------------- README


def test_the_first_screen_has_the_two_commands() -> None:
    first_screen = README.splitlines()[:25]
    (serve, test) = [line.strip() for line in first_screen if "python3 -m venv" in line]
    assert serve.endswith(".venv/bin/dbos-actors serve --embedded")
    assert test.endswith("&& .venv/bin/pytest")
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for line in (serve, test):
        extra = re.search(r"pip install -q (.*) &&", line)
        assert extra is not None
        assert f"install -q {extra[1]}" in gate


async def test_the_example_prints_what_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = fenced(README, "python", containing="asyncio.run")
    (expected,) = [line for line in indented() if line.startswith("result-1")]
    async with open_embedded(tmp_path) as store:
        settings = Settings(port=0, redis_addr=store.address)
        async with open_supervisor(settings) as server:
            code = code.replace("127.0.0.1:50051", server.address)
            result = await trio.to_thread.run_sync(run_python, code)
    assert result.stdout == f"{expected}\n", result.stderr


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        check=False,
        cwd=ROOT,
        text=True,
        timeout=60,
    )


def test_the_embedding_example_serves() -> None:
    page = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")
    result = run_python(fenced(page, "python", containing="trio.run"))
    assert result.returncode == 0, result.stderr
    assert re.search(r"^serving at 127\.0\.0\.1:\d+$", result.stdout, re.MULTILINE), result.stdout


def test_the_example_of_somebodys_service_says_hello() -> None:
    text = (ROOT / "docs" / "rpc.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = run_python(code.replace("50052", str(port)))
    assert result.stdout == "Hello, Trio!\n", result.stderr
    assert "    Hello, Trio!\n" in text


def test_every_file_that_a_document_links_to_exists() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_file_that_a_document_names_exists() -> None:
    folders = [ROOT, ROOT / "dbos_actors", ROOT / "bench"]
    for page in [*DOCUMENTS, ROOT / "bench" / "README.md"]:
        if page.name == "CHANGELOG.md":  # it tells of what was
            continue
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:bench|dbos_actors|docs|tests)/[\w/.-]+\.\w+)`", text)
        named += re.findall(r"`([\w./-]+/[\w-]+\.py)`", text)
        for path in named:
            assert any((folder / path).exists() for folder in folders), f"{page.name}: {path}"


def test_lines_of_documents_end_at_100_columns() -> None:
    for page in [*DOCUMENTS, ROOT / "bench" / "README.md"]:
        if page.name == "api.md":  # a great part of it is generated
            continue
        fenced_off = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            if line.startswith("```"):
                fenced_off = not fenced_off
            # A row of a table cannot be broken, nor can a command or its output.
            if not fenced_off and not line.startswith(("|", "    ")):
                assert len(line) <= 100, f"{page.name}:{number} has {len(line)} columns"


# ----------------------------------------------------------------- layers, contract


def test_imports_point_down() -> None:
    # In a process of its own, for it switches off every logger of the process that it runs in.
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_generated_code_is_current(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    assert generate.outdated(tmp_path) == [], "run: python -m dbos_actors.api.generate"


def test_nothing_is_left_to_do_and_no_path_is_of_one_machine() -> None:
    # Spelt in two halves, for this file is looked at too.
    unwanted = re.compile("TO" + "DO|FIX" + "ME|XX" + "X\\b|/wor" + "k/|/opt" + "/venv|/root" + "/")
    suffixes = {".md", ".proto", ".py", ".pyi", ".toml"}
    for folder in ("bench", "dbos_actors", "docs", "protos", "tests", "."):
        walk = (ROOT / folder).glob("*") if folder == "." else (ROOT / folder).rglob("*")
        for path in walk:
            if path.suffix in suffixes:
                found = unwanted.search(path.read_text(encoding="utf-8"))
                assert found is None, f"{path}: {found}"
