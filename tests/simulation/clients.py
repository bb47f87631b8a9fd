"""Clients of the simulation: control servers and agents that report, repeat and look.

What they send is drawn from the seed and made to provoke: whole runs, but with
reports doubled, late and out of order; results again, with other data; the same
request sent again after no answer; reads of everything in between.
"""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

import trio

from tests.simulation.history import Ending, History, Outcome
from tests.simulation.models import ATTEMPTS, RANK
from tests.simulation.plan import Plan

SHARED_MODULES = ("ping", "dns:v6")
STATES = tuple(RANK)
RETRIES = 4
TIMEOUTS_S = (None, 1.0, 4.0, 8.0)


class Service(Protocol):
    """Whoever takes the calls now."""

    async def exchange(
        self, method: str, request: dict[str, Any], timeout_s: float | None
    ) -> Outcome: ...

    def now_s(self) -> float: ...


class Universe:
    """The names that occur in a run. Ids have characters that mean something in keys."""

    def __init__(self, plan: Plan) -> None:
        self.agents = [f"agent:{i}" for i in range(plan.agents)]
        self.runs = [
            (agent, f"req-{i}{{{n}}}", SHARED_MODULES[i % 2])
            for n, agent in enumerate(self.agents)
            for i in range(plan.runs)
        ]
        self.results = [(agent, f"res%{i}") for agent in self.agents for i in range(plan.results)]
        self.tasks = [(f"task-{i}", self.agents[i % len(self.agents)]) for i in range(plan.tasks)]
        self.modules = [(agent, module) for agent in self.agents for module in SHARED_MODULES]

    def add_streamed(self, history: History) -> None:
        """Add the results that were sent on streams only."""
        known = set(self.results)
        for operation in history.operations:
            if operation.method == "StoreResults":
                result = operation.request["result"]
                named = (result["agent_id"], result["id"])
                if named not in known:
                    known.add(named)
                    self.results.append(named)


class Client:
    """One client, which sends one call at a time."""

    def __init__(
        self, name: str, *, plan: Plan, random: Random, service: Service, history: History
    ) -> None:
        self.name = name
        self._plan = plan
        self._random = random
        self._service = service
        self._history = history
        self._universe = Universe(plan)
        self._sent = 0
        # Tokens of leases, right and stale ones, by task.
        self._tokens: dict[str, list[str]] = {}
        # The last lease request that has a key.
        self._keyed: dict[str, Any] | None = None

    async def run(self) -> None:
        """Send the planned number of operations."""
        random = self._random
        for _ in range(self._plan.operations):
            method, request = self._next()
            retries = random.choice([0, 1, RETRIES])
            await self.call(method, request, retries=retries)
            if request.get("request_key") and random.random() < 0.4:
                # As if the answer had been lost on the way.
                await self.call(method, request, retries=retries)
            if self._plan.think_s:
                await trio.sleep(random.expovariate(1 / self._plan.think_s))

    async def call(
        self, method: str, request: dict[str, Any], *, retries: int = 0, impatient: bool = True
    ) -> tuple[Ending, Any]:
        """Send a call; again, as an operation of its own, if there is no answer."""
        random = self._random
        while True:
            timeout_s = random.choice(TIMEOUTS_S) if impatient else None
            operation = self._history.begin(self.name, method, request, self._service.now_s())
            outcome = await self._service.exchange(method, request, timeout_s)
            self._history.finish(operation, outcome, self._service.now_s())
            ending, answer, _ = outcome
            if method == "LeaseTasks" and ending is Ending.ANSWERED:
                for task in answer.tasks:
                    self._tokens.setdefault(task.id, []).append(task.lease_token)
            if ending is Ending.ANSWERED or retries <= 0:
                return ending, answer
            retries -= 1
            await trio.sleep(random.uniform(0.0, 0.5))

    # -------------------------------------------------------------- requests

    def _next(self) -> tuple[str, dict[str, Any]]:
        random = self._random
        kinds = [
            (self._register, 2.0),
            (self._beat, 1.5),
            (self._get_agent, 1.5),
            (self._report_run, 6.0),
            (self._report_module, 1.0),
            (self._get_run, 3.0),
            (self._store_result, 4.0),
            (self._get_result, 2.0),
            (self._list_states, 1.0),
            (self._list_results, 1.0),
            (self._list_agents, 0.5),
            (self._delete, 0.6 if self._plan.deletes else 0.0),
        ]
        if self._universe.tasks:
            kinds += [
                (self._schedule, 2.0),
                (self._lease, 2.0),
                (self._settle, 4.0),
                (self._get_task, 1.5),
                (self._cancel, 0.7),
                (self._requeue, 0.7),
            ]
        (make,) = random.choices([k for k, _ in kinds], weights=[w for _, w in kinds])
        return make()

    def _tag(self) -> str:
        self._sent += 1
        return f"{self.name}/{self._sent}"

    def _register(self) -> tuple[str, dict[str, Any]]:
        random = self._random
        return "RegisterAgent", {
            "agent": {
                "id": random.choice(self._universe.agents),
                "hostname": "h",
                "alive": random.random() < 0.8,
                "first_seen": random.randint(1_000, 1_010),
                "last_seen": random.randint(2_000, 2_010),
                "total_heartbeats": random.randint(1, 20),
                "config": {"tag": self._tag()},
            }
        }

    def _beat(self) -> tuple[str, dict[str, Any]]:
        return "Heartbeat", {
            "agent_id": self._random.choice(self._universe.agents),
            "last_seen": self._random.randint(2_000, 2_015),
            "total_heartbeats": self._random.randint(1, 25),
        }

    def _get_agent(self) -> tuple[str, dict[str, Any]]:
        return "GetAgent", {"agent_id": self._random.choice(self._universe.agents)}

    def _report_run(self) -> tuple[str, dict[str, Any]]:
        random = self._random
        agent, request_id, module = random.choice(self._universe.runs)
        return "SetModuleState", {
            "state": {
                "agent_id": agent,
                "request_id": request_id,
                "module_name": module,
                "state": random.choices(STATES, weights=(3, 3, 4, 2, 1, 1))[0],
                "version": random.choice([0, 0, 0, 1, 2, 3]),
                "timestamp": 1_234,
                "details": {"tag": self._tag()},
            }
        }

    def _report_module(self) -> tuple[str, dict[str, Any]]:
        agent, module = self._random.choice(self._universe.modules)
        return "SetModuleState", {
            "state": {
                "agent_id": agent,
                "module_name": module,
                "state": self._random.choice(["running", "stopped"]),
                "timestamp": 1_234,
                "details": {"tag": self._tag()},
            }
        }

    def _get_run(self) -> tuple[str, dict[str, Any]]:
        agent, request_id, _ = self._random.choice(self._universe.runs)
        named = {"agent_id": agent} if self._random.random() < 0.6 else {}
        return "GetModuleState", {"request_id": request_id, **named}

    def _store_result(self) -> tuple[str, dict[str, Any]]:
        random = self._random
        agent, result_id = random.choice(self._universe.results)
        # Few different contents, so that a repeat is sometimes the same and sometimes not.
        return "StoreResult", {
            "result": {
                "agent_id": agent,
                "id": result_id,
                "module_name": "ping",
                "data": random.choice([b"one", b"two"]),
                "received_at": random.choice([0, 1_000, 2_000]),
            }
        }

    def _get_result(self) -> tuple[str, dict[str, Any]]:
        agent, result_id = self._random.choice(self._universe.results)
        return "GetResult", {"agent_id": agent, "request_id": result_id}

    def _list_states(self) -> tuple[str, dict[str, Any]]:
        agent, module = self._random.choice(self._universe.modules)
        return "ListModuleStates", {
            "agent_id": agent,
            "module_name": self._random.choice(["", module]),
        }

    def _list_results(self) -> tuple[str, dict[str, Any]]:
        return "ListResults", {
            "agent_id": self._random.choice(self._universe.agents),
            "newest_first": self._random.random() < 0.5,
        }

    def _list_agents(self) -> tuple[str, dict[str, Any]]:
        return "ListAgents", {}

    def _delete(self) -> tuple[str, dict[str, Any]]:
        return "DeleteAgent", {"agent_id": self._random.choice(self._universe.agents)}

    def _schedule(self) -> tuple[str, dict[str, Any]]:
        task_id, agent = self._random.choice(self._universe.tasks)
        return "ScheduleTask", {
            "task": {
                "id": task_id,
                "agent_id": agent,
                "module_name": "ping",
                "payload": self._random.choice([b"this", b"that"]),
                "max_attempts": ATTEMPTS,
            },
            "revive": self._random.random() < 0.5,
        }

    def _lease(self) -> tuple[str, dict[str, Any]]:
        random = self._random
        if self._keyed is not None and random.random() < 0.4:
            return "LeaseTasks", self._keyed
        has_key = random.random() < 0.5
        request = {
            "limit": random.choice([1, 10]),
            "lease_seconds": random.choice([1, 2, 5]),
            "worker_id": self.name,
            "request_key": self._tag() if has_key else "",
        }
        if has_key:
            self._keyed = request
        return "LeaseTasks", request

    def _settle(self) -> tuple[str, dict[str, Any]]:
        random = self._random
        task_id, _ = random.choice(self._universe.tasks)
        tokens = self._tokens.get(task_id, [])
        token = ""
        if tokens and random.random() < 0.9:
            token = tokens[-1] if random.random() < 0.8 else random.choice(tokens)
        request: dict[str, Any] = {"task_id": task_id, "lease_token": token}
        if random.random() < 0.6:
            return "AckTask", request
        return "NackTask", {**request, "retry_delay_seconds": random.choice([0, 0, 1])}

    def _cancel(self) -> tuple[str, dict[str, Any]]:
        return "CancelTask", {"task_id": self._random.choice(self._universe.tasks)[0]}

    def _requeue(self) -> tuple[str, dict[str, Any]]:
        return "RequeueTask", {"task_id": self._random.choice(self._universe.tasks)[0]}

    def _get_task(self) -> tuple[str, dict[str, Any]]:
        return "GetTask", {"task_id": self._random.choice(self._universe.tasks)[0]}

    # ------------------------------------------------------- at the very end

    async def look_at_everything(self) -> bool:
        """Read every register there is; whether all reads were answered."""
        universe = self._universe
        reads: list[tuple[str, dict[str, Any]]] = [("ListAgents", {})]
        for agent in universe.agents:
            reads += [
                ("GetAgent", {"agent_id": agent}),
                ("ListModuleStates", {"agent_id": agent}),
                ("ListResults", {"agent_id": agent}),
            ]
        for agent, request_id, _ in universe.runs:
            reads.append(("GetModuleState", {"agent_id": agent, "request_id": request_id}))
            reads.append(("GetModuleState", {"request_id": request_id}))
        for agent, result_id in universe.results:
            reads.append(("GetResult", {"agent_id": agent, "request_id": result_id}))
        reads += [("GetTask", {"task_id": task_id}) for task_id, _ in universe.tasks]
        answered = True
        for method, request in reads:
            ending, _ = await self.call(method, request, impatient=False)
            answered = answered and ending is Ending.ANSWERED
        return answered
