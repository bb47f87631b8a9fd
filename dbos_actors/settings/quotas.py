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
    agents_max: int = setting(
        "DBOS_AGENTS_MAX",
        1_000_000,
        unit="agents",
        used_by="actors.agents",
        ge=0,
        text="Agents that have anything stored; beyond it a new one gets RESOURCE_EXHAUSTED, so "
        "that made-up ids fill neither memory nor Redis. Each takes 0.1 KB of the server's memory "
        "and 0.5 KB of Redis's. 0 = no limit.",
    )
    agent_unfinished_max: int = setting(
        "DBOS_AGENT_UNFINISHED_RUNS_MAX",
        100_000,
        unit="runs",
        used_by="actors.agents",
        ge=0,
        text="Unfinished runs of one agent; beyond it a new one gets RESOURCE_EXHAUSTED. They stay "
        "in memory while the agent does, at 0.6 KB each. 0 = no limit.",
    )
    agent_runs_max: int = setting(
        "DBOS_AGENT_RUNS_MAX",
        0,
        unit="runs",
        used_by="actors.agents",
        ge=0,
        text="Runs of one agent that are kept, finished or not, and states of modules themselves; "
        "beyond it a new one gets RESOURCE_EXHAUSTED. 0 = no limit.",
    )
    agent_modules_max: int = setting(
        "DBOS_AGENT_MODULES_MAX",
        0,
        unit="names",
        used_by="actors.agents",
        ge=0,
        text="Names of modules in an agent's runs and states; beyond it a state of another module "
        "gets RESOURCE_EXHAUSTED. 0 = no limit.",
    )
    agent_results_max: int = setting(
        "DBOS_AGENT_RESULTS_MAX",
        0,
        unit="results",
        used_by="actors.agents",
        ge=0,
        text="Results of one agent that are kept; beyond it a new one gets RESOURCE_EXHAUSTED, "
        "until retention or DeleteAgent has made room. 0 = no limit.",
    )
    agent_tasks_max: int = setting(
        "DBOS_AGENT_TASKS_MAX",
        0,
        unit="tasks",
        used_by="actors.tasks",
        ge=0,
        text="Tasks of one agent that are kept, in any state; beyond it a new one gets "
        "RESOURCE_EXHAUSTED. 0 = no limit.",
    )
    agent_bytes_per_s: Size = setting(
        "DBOS_AGENT_BYTES_PER_SECOND",
        0,
        unit="size",
        used_by="service",
        text="Likewise, bytes of these requests.",
    )
