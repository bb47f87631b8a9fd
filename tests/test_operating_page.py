"""What docs/operating.md tells operators to look at is there."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import trio

from dbos_actors.cli.serving import Exit
from dbos_actors.server import open_supervisor
from dbos_actors.settings import Settings
from dbos_actors.store.embedded import open_embedded

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


def first_cells(head: str) -> list[str]:
    """The names and numbers in the first column of the table with this head."""
    table = PAGE.split(f"{head}\n", 1)[1].split("\n\n", 1)[0]
    cells = [row.split("|")[1] for row in table.splitlines()[1:]]
    return [name for cell in cells for name in re.findall(r"\w+", cell)]


async def test_every_metric_on_the_page_is_exported(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as store:
        settings = Settings(port=0, metrics_port=0, redis_addr=store.address)
        async with open_supervisor(settings) as server:
            url = f"http://127.0.0.1:{server.metrics_port}/metrics"

            def read() -> str:
                with urllib.request.urlopen(url, timeout=10) as page:
                    return str(page.read().decode())

            exported = await trio.to_thread.run_sync(read)
    named = set(re.findall(r"`(dbos_[a-z_]+)`", PAGE))
    assert len(named) > 15
    for name in named:
        assert re.search(rf"^# TYPE {name} ", exported, re.MULTILINE), name


def test_every_log_event_on_the_page_is_logged_by_the_code() -> None:
    code = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "dbos_actors").rglob("*.py")
    )
    events = first_cells("| event | level | meaning |")
    assert len(events) > 15
    for event in events:
        assert f'"{event}"' in code, event


def test_every_exit_status_is_on_the_page() -> None:
    assert [int(cell) for cell in first_cells("| status | meaning | what to do |")] == list(Exit)
