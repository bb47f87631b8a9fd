"""``python -m tests.chaos.overload``: too much of everything, and how everyone else fares.

Each scenario has a server and a Valkey of its own, and a probe (`tests.chaos.stage`).

Clients, server and Valkey share the machine. Floods run at the system's lowest priority, and still
take a share of the cores that serve them: the figures say how much was really sent.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bench.load import frames
from bench.load.histogram import Histogram
from bench.load.requests import Parameters, id_prefix
from dbos_actors.api import messages
from dbos_actors.store.keys import Keys
from tests.chaos.flood import Flood, FloodProcess, Outcome
from tests.chaos.inspected import resident_bytes
from tests.chaos.probe import Probe
from tests.chaos.stage import MB, Report, Stage, connected, publish, served, stage, told
from tests.support.clients import CallError, GrpcioClient
from tests.support.result_files import add_result_option, command_line, kept_in
from tests.support.valkey import ValkeyServer


def parameters(run: int, *, agents: int = 1_000, mix: str = "small") -> dict[str, Any]:
    """A workload of new results."""
    return asdict(Parameters("store_result", id_prefix(run, 0), agents=agents, mix=mix))


def flood(
    address: str,
    *,
    run: int,
    rate: float,
    duration_s: float,
    processes: int = 1,
    connections: int = 8,
    in_flight_each: int = 1_000,
    agents: int = 1_000,
) -> list[FloodProcess]:
    """Start floods that share a rate."""
    started = [
        FloodProcess(
            Flood(
                address,
                parameters(run + index, agents=agents),
                rate / processes,
                connections,
                in_flight_each,
                duration_s,
            )
        )
        for index in range(processes)
    ]
    for process in started:
        process.go()
    return started


def added(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several processes."""
    total = Outcome(duration_s=max(outcome.duration_s for outcome in outcomes))
    good, refused = Histogram(), Histogram()
    for outcome in outcomes:
        total.offered += outcome.offered
        total.sent += outcome.sent
        total.good_in_time += outcome.good_in_time
        total.unanswered += outcome.unanswered
        for reason, count in outcome.refused.items():
            total.refused[reason] = total.refused.get(reason, 0) + count
        good.add(Histogram.from_json(outcome.good_us))
        refused.add(Histogram.from_json(outcome.refused_us))
    total.good_us, total.refused_us = good.to_json(), refused.to_json()
    return total


# ----------------------------------------------------------------- scenarios


def five_times_too_much(duration_s: float, connections: int) -> Report:
    """The peak, then five times that, then nothing: goodput, memory, refusals, recovery."""
    report = Report(f"Five times the sustainable rate, {connections} connections of 1,000 calls")
    with stage() as on:
        calm = on.baseline()
        report.add("alone", told(calm))
        on.cpu_share()
        # The peak: as many as are answered, a little in flight.
        (process,) = flood(
            on.address, run=1, rate=10**6, duration_s=duration_s, connections=4, in_flight_each=32
        )
        peak = process.outcome()
        report.add("server's CPU then", f"{on.cpu_share():.0%} of a core")
        peak_s = peak.good_in_time / peak.duration_s
        report.add("peak (128 in flight)", f"{peak_s:,.0f}/s")
        time.sleep(1.0)
        begin = time.perf_counter()
        on.cpu_share()
        processes = flood(
            on.address,
            run=10,
            rate=5 * peak_s,
            duration_s=duration_s,
            processes=2,
            connections=connections // 2,
            in_flight_each=1_000,
        )
        total = added([process.outcome() for process in processes])
        end = begin + total.duration_s + 1.0
        report.add("server's CPU in the flood", f"{on.cpu_share():.0%} of a core")
        goodput = total.good_in_time / total.duration_s
        share = goodput / peak_s
        report.add("offered", f"{total.offered / total.duration_s:,.0f}/s")
        report.add("sent", f"{total.sent / total.duration_s:,.0f}/s")
        report.add("goodput", f"{goodput:,.0f}/s, {share:.0%} of the peak", "> 80%", ok=share > 0.8)
        report.add("refused", f"{total.refused}")
        report.add("unanswered", f"{total.unanswered}", ok=not total.unanswered)
        report.add("answered well after", told(Histogram.from_json(total.good_us)))
        report.add("refused after", told(Histogram.from_json(total.refused_us)))
        report.add("the probe meanwhile", told(on.probe.between(begin, end)))
        grown = (on.watch.most - on.watch.before) / MB
        report.add("server's memory grew by at most", f"{grown:.0f} MB", "< 600", ok=grown < 600)
        time.sleep(6.0)
        back_s = recovery_s(on.probe, begin + total.duration_s, calm)
        report.add("latency normal again after", f"{back_s:.1f} s", "< 5 s", ok=back_s < 5)
    return report


def recovery_s(probe: Probe, since: float, calm: Histogram) -> float:
    """When the last half second with a slow call ended."""
    normal_s = max(0.005, 3 * calm.percentile_us(99) / 1e6)
    slow = [at + took for at, took in probe.samples if took > normal_s and at + took > since]
    # Single slow calls come from the machine; ten in a row do not.
    windows = [at for at in slow if sum(at <= other < at + 0.5 for other in slow) >= 10]
    return max(windows, default=since) - since


def slow_clients(duration_s: float) -> Report:
    """Two hundred clients that ask for much and read nothing."""
    report = Report("Clients that do not read")
    with stage() as on:
        with GrpcioClient(on.address) as client:
            client.call_many(
                "StoreResult",
                (
                    {
                        "result": {
                            "id": f"r{number}",
                            "agent_id": "big",
                            "module_name": "m",
                            "data": bytes(100_000),
                        }
                    }
                    for number in range(30)
                ),
                in_flight=10,
            )
        calm = on.baseline()
        report.add("alone", told(calm))
        request = messages.ListResultsRequest(agent_id="big").SerializeToString()
        headers = frames.RequestHeaders("/dbos.DBOS/ListResults", "slow", 0)
        slow = []
        begin = time.perf_counter()
        for _ in range(200):
            one = connected(on.address)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            data = frames.client_preface()
            for stream in range(1, 21, 2):
                data += frames.unary_call(stream, headers.first, request)
            one.sendall(data)
            slow.append(one)
        time.sleep(duration_s)
        meanwhile = on.probe.between(begin, time.perf_counter())
        report.add("asked for", f"{200 * 10 * 3} MB by 200 connections")
        # Two thousand listings of 3 MB are work, read or not: as much as others wait for it.
        served(report, meanwhile, calm, limit_ms=100.0)
        grown = (on.watch.most - on.watch.before) / MB
        report.add("server's memory grew by at most", f"{grown:.0f} MB", "< 700", ok=grown < 700)
        for one in slow:
            one.close()
    return report


def idle_connections(count: int) -> Report:
    """Ten thousand connections that say nothing."""
    report = Report(f"{count:,} idle connections")
    with stage() as on:
        calm = on.baseline()
        report.add("alone", told(calm))
        begin = time.perf_counter()
        idle = []
        # One call each: a connection whose client never calls has to make room for others.
        request = messages.GetAgentRequest(agent_id="nobody").SerializeToString()
        headers = frames.RequestHeaders("/dbos.DBOS/GetAgent", "idle", 0)
        call = frames.unary_call(1, headers.first, request)
        for _ in range(count):
            one = connected(on.address)
            one.sendall(frames.client_preface() + call)
            idle.append(one)
        give_up_at = time.monotonic() + 60
        while on.server.ask()["rpc.connections"] <= count and time.monotonic() < give_up_at:
            time.sleep(0.1)
        figures = on.server.ask()
        report.add(
            "connections", f"{figures['rpc.connections']:,}", ok=figures["rpc.connections"] > count
        )
        report.add("opened within", f"{time.perf_counter() - begin:.1f} s")
        start = time.perf_counter()
        time.sleep(5.0)
        served(report, on.probe.between(start, time.perf_counter()), calm)
        each = (resident_bytes(on.server.pid) - on.watch.before) / count / 1000
        report.add("memory for each", f"{each:.1f} kB", "< 40 kB", ok=each < 40)
        for one in idle:
            one.close()
        give_up_at = time.monotonic() + 30
        while on.server.ask()["rpc.connections"] > 1 and time.monotonic() < give_up_at:
            time.sleep(0.1)
        left = on.server.ask()["rpc.connections"]
        report.add("connections after they have left", str(left), "1", ok=left == 1)
    return report


def one_agent(duration_s: float) -> Report:
    """All the traffic about one agent, as much as is answered."""
    report = Report("One agent has all the traffic")
    with stage() as on:
        calm = on.baseline()
        report.add("alone", told(calm))
        spread = measured(on, run=1, duration_s=duration_s, agents=1_000)
        report.add("1,000 agents at full speed", spread[0])
        report.add("the probe meanwhile", told(spread[1]))
        single = measured(on, run=2, duration_s=duration_s, agents=1)
        report.add("one agent at full speed", single[0])
        limit_ms = max(50.0, 2 * spread[1].percentile_us(99) / 1000)
        p99_ms = single[1].percentile_us(99) / 1000
        report.add(
            "the probe meanwhile", told(single[1]), f"p99 < {limit_ms:.0f} ms", ok=p99_ms < limit_ms
        )
        report.add(
            "calls of the probe that failed",
            str(len(on.probe.failures)),
            "0",
            ok=not on.probe.failures,
        )
    return report


def measured(on: Stage, *, run: int, duration_s: float, agents: int) -> tuple[str, Histogram]:
    begin = time.perf_counter()
    (process,) = flood(
        on.address,
        run=run,
        rate=10**6,
        duration_s=duration_s,
        connections=4,
        in_flight_each=32,
        agents=agents,
    )
    outcome = process.outcome()
    latencies = on.probe.between(begin + 0.5, begin + duration_s)
    rate = outcome.good_in_time / outcome.duration_s
    refused = f", refused {outcome.refused}" if outcome.refused else ""
    return f"{rate:,.0f}/s{refused}", latencies


def giant_agent(results: int, runs: int) -> Report:
    """One agent with a million results and a hundred thousand runs."""
    report = Report(f"One agent with {results:,} results and {runs:,} runs")
    with stage(lambda valkey: fill_giant(valkey, results, runs)) as on:
        calm = on.baseline()
        report.add("alone", told(calm))
        with GrpcioClient(on.address) as client:
            for name, work in giant_work(client).items():
                start = time.perf_counter()
                said = work()
                took = time.perf_counter() - start
                time.sleep(0.2)
                others = on.probe.between(start, time.perf_counter())
                max_ms = others.percentile_us(100) / 1000
                report.add(
                    f"{name}: {took:.2f} s{said}",
                    f"others {told(others)}",
                    "max < 250 ms",
                    ok=max_ms < 250,
                )
        grown = (on.watch.most - on.watch.before) / MB
        report.add("server's memory grew by at most", f"{grown:.0f} MB", "< 300", ok=grown < 300)
    return report


def giant_work(client: GrpcioClient) -> dict[str, Callable[[], str]]:
    """What is asked about the giant, in order."""

    def call(method: str, **fields: Any) -> str:
        try:
            response = client.call(method, timeout_s=120.0, **fields)
        except CallError as error:
            return f", {error.status}"
        return f", {response.error}" if response.error else ""

    def many(method: str, requests: Iterator[dict[str, Any]]) -> str:
        outcomes = client.call_many(method, requests, in_flight=50)
        failed = [outcome for outcome in outcomes if isinstance(outcome, CallError)]
        return f", {len(failed)} failed" if failed else ""

    state = {"agent_id": "giant", "module_name": "ping", "state": "running"}
    result = {"agent_id": "giant", "module_name": "ping", "data": b"x"}
    return {
        "first report (it is loaded)": lambda: call(
            "SetModuleState", state={**state, "request_id": "first"}
        ),
        "1,000 results": lambda: many(
            "StoreResult", ({"result": {**result, "id": f"n{n}"}} for n in range(1_000))
        ),
        "1,000 new runs": lambda: many(
            "SetModuleState", ({"state": {**state, "request_id": f"n{n}"}} for n in range(1_000))
        ),
        "1,000 old runs read": lambda: many(
            "GetModuleState",
            ({"request_id": f"run-{n * 50}", "agent_id": "giant"} for n in range(1_000)),
        ),
        "a page of 1,000 results": lambda: call("ListResults", agent_id="giant", page_size=1_000),
        "a page of 1,000 runs": lambda: call("ListModuleStates", agent_id="giant", page_size=1_000),
        "all results at once": lambda: call("ListResults", agent_id="giant"),
        "all runs at once": lambda: call("ListModuleStates", agent_id="giant"),
        "failed runs only": lambda: call(
            "ListModuleStates", agent_id="giant", states=["failed"], page_size=100
        ),
        "its deletion": lambda: call("DeleteAgent", agent_id="giant"),
    }


def fill_giant(valkey: ValkeyServer, results: int, runs: int) -> None:
    """Write the agent as the service would have, past it: minutes become seconds."""
    keys, agent = Keys(), "giant"
    now = int(time.time())
    with valkey.client() as client:
        for first in range(0, results, 10_000):
            numbers = range(first, min(first + 10_000, results))
            records: dict[Any, Any] = {
                f"result-{n}": messages.MeasurementResult(
                    id=f"result-{n}",
                    agent_id=agent,
                    module_name="ping",
                    data=b"x" * 100,
                    received_at=now - n // 100,
                ).SerializeToString()
                for n in numbers
            }
            client.hset(keys.results + agent, mapping=records)
            client.zadd(keys.results_at + agent, {f"result-{n}": now - n // 100 for n in numbers})
        for first in range(0, runs, 10_000):
            numbers = range(first, min(first + 10_000, runs))
            fields: dict[Any, Any] = {
                f"rrun-{n}": messages.ModuleState(
                    agent_id=agent,
                    module_name="ping",
                    request_id=f"run-{n}",
                    state="completed",
                    version=4,
                    timestamp=now,
                ).SerializeToString()
                for n in numbers
            }
            times = {f"rrun-{n}": now * 1000 - n for n in numbers}
            client.hset(keys.states + agent, mapping=fields)
            client.zadd(keys.states_at + agent, times)
            client.zadd(f"{keys.states_of}{agent}:ping", times)
            with client.pipeline(transaction=False) as pipeline:
                for n in numbers:
                    pipeline.zadd(f"{keys.request}run-{n}", {agent: now * 1000 - n})
                pipeline.execute()
        client.sadd(keys.modules + agent, "ping")
        client.sadd(keys.agents_known, agent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: every limit is kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.overload", description=__doc__)
    parser.add_argument(
        "--only", action="append", help="flood, flood-many, slow, idle, agent or giant"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load (%(default)s)")
    parser.add_argument("--connections", type=int, default=10_000, help="idle ones (%(default)s)")
    parser.add_argument("--results", type=int, default=1_000_000, help="of the giant (%(default)s)")
    add_result_option(parser)
    options = parser.parse_args(arguments)
    scenarios: dict[str, Callable[[], Report]] = {
        "flood": lambda: five_times_too_much(options.seconds, 40),
        "flood-many": lambda: five_times_too_much(options.seconds, 120),
        "slow": lambda: slow_clients(options.seconds),
        "idle": lambda: idle_connections(options.connections),
        "agent": lambda: one_agent(options.seconds),
        "giant": lambda: giant_agent(options.results, options.results // 10),
    }
    reports = []
    for name in options.only or scenarios:
        print(name, file=sys.stderr)
        reports.append(scenarios[name]())
    with kept_in(options.result, command_line("tests.chaos.overload", arguments)):
        return publish(reports)


if __name__ == "__main__":
    sys.exit(main())
