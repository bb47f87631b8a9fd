from __future__ import annotations

from pathlib import Path

import pytest
import trio

from dbos_actors.rpc.server.listeners import open_listeners


async def test_a_socket_file_left_behind_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    stale = trio.socket.socket(trio.socket.AF_UNIX)
    await stale.bind(str(path))
    stale.close()
    (listener,) = await open_listeners(f"unix:{path}")
    with pytest.raises(OSError, match="in use"):
        await open_listeners(f"unix:{path}")
    async with await trio.open_unix_socket(path):
        pass
    await listener.aclose()
    assert not path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        await open_listeners(f"unix:{path}")
    assert path.read_text() == "precious"
