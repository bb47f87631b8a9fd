"""A Valkey for tests of many rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.valkey import ValkeyServer


@pytest.fixture
def quick_valkey(start_valkey: Callable[..., ValkeyServer]) -> ValkeyServer:
    """For hundreds of rounds without a crash: nothing waits for the disk."""
    return start_valkey(appendfsync="no")
