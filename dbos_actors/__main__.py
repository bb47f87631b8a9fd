"""``python -m dbos_actors`` is ``dbos-actors``."""

from __future__ import annotations

from dbos_actors.cli import main

if __name__ == "__main__":
    main(prog_name="dbos-actors")
