"""How much a principal or an agent may ask for in a second: token buckets.

A bucket is kept as one time: the moment at which it would be full again (the "theoretical arrival
time" of GCRA). A call moves that time on by what it costs. It is admitted if the time is then not
more than a second ahead. So a bucket holds one second's worth, or one call if that is more, and
refills by itself, without a timer.

A call is counted when its headers come. The bytes of its request and its answer are not known then,
so they are charged when they are. A bucket may therefore be in debt, by one message for each call
that was let in. It admits nothing before the debt is paid, so the rate holds over time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dbos_actors.errors import QuotaError

_BURST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What one principal or agent may use in a second; 0 is no limit."""

    calls_per_s: float = 0
    bytes_per_s: float = 0

    def __bool__(self) -> bool:
        return bool(self.calls_per_s or self.bytes_per_s)

    def __str__(self) -> str:
        parts = []
        if self.calls_per_s:
            parts.append(f"{self.calls_per_s:g} calls")
        if self.bytes_per_s:
            parts.append(f"{self.bytes_per_s:g} bytes")
        return f"{' and '.join(parts)} a second"


class Account:
    """Two buckets, for calls and for bytes. All times are on the monotonic clock."""

    __slots__ = ("_burst_s", "_byte_s", "_bytes_full_s", "_call_s", "_calls_full_s", "rates")

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self._call_s = 1 / rates.calls_per_s if rates.calls_per_s else 0.0
        self._byte_s = 1 / rates.bytes_per_s if rates.bytes_per_s else 0.0
        self._burst_s = max(_BURST_S, self._call_s)
        self._calls_full_s = self._bytes_full_s = 0.0

    def take(self, now_s: float) -> float:
        """Count a call. Returns 0; or for how many seconds none is admitted, and counts nothing."""
        calls_full_s = max(self._calls_full_s, now_s) + self._call_s
        bytes_full_s = max(self._bytes_full_s, now_s)
        delay_s = max(calls_full_s - self._burst_s, bytes_full_s - _BURST_S) - now_s
        if delay_s > _ROUNDING_S:
            return delay_s
        self._calls_full_s, self._bytes_full_s = calls_full_s, bytes_full_s
        return 0.0

    def charge(self, calls: int, size_bytes: int) -> None:
        """Count what was let in already, be there room for it or not."""
        self._calls_full_s += calls * self._call_s
        self._bytes_full_s += size_bytes * self._byte_s

    def delay_s(self, now_s: float) -> float:
        """How long to wait before more is let in; 0 while there is room."""
        self._calls_full_s = max(self._calls_full_s, now_s)
        self._bytes_full_s = max(self._bytes_full_s, now_s)
        ahead_s = max(self._calls_full_s - self._burst_s, self._bytes_full_s - _BURST_S) - now_s
        return ahead_s if ahead_s > _ROUNDING_S else 0.0


_ROUNDING_S: Final = 1e-6
"""Sums of a thousand thousandths are a little more than one."""

AGENTS_MAX: Final = 100_000
"""Accounts of agents in memory: 20 MB. Whoever used its own longest ago leaves, with a bucket that
is full again unless so many agents reported within a second."""


class AgentQuotas:
    """The accounts of agents, by what is reported for them."""

    __slots__ = ("_accounts", "_now_s", "_rates", "refused_total")

    def __init__(self, rates: Rates, now_s: Callable[[], float]) -> None:
        """``now_s`` is the monotonic clock."""
        self._now_s = now_s
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._rates = rates
        self.refused_total = 0

    def take(self, agent_id: str, size_bytes: int) -> None:
        """Count what is reported or scheduled for an agent. Raises `QuotaError` if too much is."""
        accounts = self._accounts
        account = accounts.get(agent_id)
        if account is None:
            if len(accounts) >= AGENTS_MAX:
                accounts.popitem(last=False)
            account = accounts[agent_id] = Account(self._rates)
        else:
            accounts.move_to_end(agent_id)
        delay_s = account.take(self._now_s())
        if delay_s:
            self.refused_total += 1
            raise QuotaError(
                f"the agent {agent_id!r}", quota=str(self._rates), retry_after_s=delay_s
            )
        account.charge(0, size_bytes)
