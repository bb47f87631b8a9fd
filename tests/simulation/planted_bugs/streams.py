"""Planted bugs in the streams of the service."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from dbos_actors.service import store_results
from tests.simulation.planted_bugs.registry import planted


@planted
def a_failed_message_of_a_stream_counts_as_durable() -> Any:
    """When an earlier one is resolved before the stream has ended."""
    failed = store_results._Intake.failed

    def fail(self: Any, message: Any, error: Exception) -> None:
        message.is_resolved = True
        failed(self, message, error)

    return patch.object(store_results._Intake, "failed", fail)
