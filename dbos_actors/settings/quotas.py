"""The settings about what one principal or agent may use; ``docs/access.md`` explains them."""

from __future__ import annotations

from pydantic_settings import BaseSettings

from dbos_actors.settings.field import setting
from dbos_actors.settings.quantities import Size


class QuotaSettings(BaseSettings):
    """A part of `dbos_actors.settings.declaration.Settings`."""

    principal_calls_per_s: float = setting(
        "DBOS_PRINCIPAL_CALLS_PER_SECOND",
        0.0,
        unit="calls",
        used_by="access",
        ge=0,
        le=1e9,
        text="Calls a second that each principal of the token file may make; beyond it they get "
        "RESOURCE_EXHAUSTED. A message of a stream counts as a call. 0 = no limit. An entry of the "
        "file may say otherwise; admins have no limit unless theirs does.",
    )
    principal_bytes_per_s: Size = setting(
        "DBOS_PRINCIPAL_BYTES_PER_SECOND",
        0,
        unit="size",
        used_by="access",
        text="Likewise, bytes of requests and answers together.",
    )
    agent_calls_per_s: float = setting(
        "DBOS_AGENT_CALLS_PER_SECOND",
        0.0,
        unit="calls",
        used_by="service",
        ge=0,
        le=1e9,
        text="Heartbeats, states, results and tasks a second that may be reported or scheduled for "
        "one agent, by all clients together. 0 = no limit.",
    )
    agent_bytes_per_s: Size = setting(
        "DBOS_AGENT_BYTES_PER_SECOND",
        0,
        unit="size",
        used_by="service",
        text="Likewise, bytes of these requests.",
    )
