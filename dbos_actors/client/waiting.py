"""Waiting for a run to end."""

from __future__ import annotations

import random
from typing import Final

import anyio

from dbos_actors.api.sdk.dbos import DbosStub, GetModuleStateRequest, ModuleState
from dbos_actors.backoff import Backoff, BackoffPolicy
from dbos_actors.client.errors import DeadlineError, RefusedError

FINAL_STATES: Final = frozenset({"completed", "error", "failed"})
"""A run that is in one of these does not change any more."""

_LOOKS: Final = BackoffPolicy(first_s=0.05, factor=1.5, max_s=2.0, jitter=0.2)
"""Between two looks at the run: a short run is noticed at once, a long one costs a read every two
seconds."""


async def wait_for_run(
    stub: DbosStub, request_id: str, *, agent_id: str = "", timeout_s: float | None = None
) -> ModuleState:
    """The final state of a run, as soon as it has one; a run may be waited for before it begins.

    ``agent_id`` says whose run it is, if several agents use the request id. Raises `DeadlineError`
    after ``timeout_s`` seconds, `RefusedError` if the request is wrong, and what a call raises.
    """
    request = GetModuleStateRequest(request_id=request_id, agent_id=agent_id)
    looks = Backoff(_LOOKS, random.Random())  # noqa: S311 - jitter
    with anyio.move_on_after(timeout_s):
        while True:
            response = await stub.get_module_state(request)
            if response.found and response.state.state in FINAL_STATES:
                return response.state
            if not response.found and not request_id:
                raise RefusedError(response.error)
            await anyio.sleep(looks.next_s())
    raise DeadlineError(f"run {request_id!r} has not ended within {timeout_s:g} s")
