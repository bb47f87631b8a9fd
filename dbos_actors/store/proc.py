"""What Linux says of a process, in proc(5)."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def state_and_start(process_id: int) -> tuple[str, int]:
    """A process's state, and when it began in ticks since the system's start.

    These are the fields 3 and 22 of ``stat``. Raises FileNotFoundError if there is no such process,
    other errors of OSError if its entry cannot be read, and ValueError if that is malformed.
    """
    text = (PROC / str(process_id) / "stat").read_text(encoding="ascii", errors="replace")
    # The second field, the program's name, is in parentheses and may hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20:
        raise ValueError(f"{PROC}/{process_id}/stat has too few fields")
    return fields[0], int(fields[19])
