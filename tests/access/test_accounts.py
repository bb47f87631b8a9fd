"""Token buckets: what they admit, over any stretch of time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.access.quotas import AGENTS_MAX, Account, AgentQuotas, Rates
from dbos_actors.errors import QuotaError


def admitted(account: Account, times: list[float]) -> int:
    return sum(account.take(at_s) == 0.0 for at_s in times)


@pytest.mark.parametrize("rate", [1, 7, 100, 30_000])
def test_a_flood_gets_a_second_at_once_and_then_the_rate(rate: int) -> None:
    account = Account(Rates(calls_per_s=rate))
    flood = [1_000 + number / (rate * 10) for number in range(rate * 10 * 5)]  # five seconds
    assert admitted(account, flood[: rate * 10]) == pytest.approx(2 * rate, abs=1)
    assert admitted(account, flood[rate * 10 :]) == pytest.approx(4 * rate, abs=1)


def test_less_than_one_call_a_second_admits_one_and_says_when_the_next() -> None:
    account = Account(Rates(calls_per_s=0.1))
    assert account.take(50.0) == 0.0
    assert account.take(51.0) == pytest.approx(9.0)
    assert account.take(60.0) == 0.0


def test_a_steady_client_within_its_rate_is_never_refused() -> None:
    account = Account(Rates(calls_per_s=1_000))
    assert admitted(account, [5 + number / 1_000 for number in range(100_000)]) == 100_000


def test_bytes_that_are_charged_later_are_paid_before_the_next_call() -> None:
    account = Account(Rates(bytes_per_s=1_000))
    assert account.take(10.0) == 0.0
    account.charge(0, 5_000)
    assert account.take(10.0) == pytest.approx(4.0)
    assert account.delay_s(12.0) == pytest.approx(2.0)
    assert account.take(14.0) == 0.0


@given(
    rate=st.floats(0.5, 1_000),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
    sizes=st.lists(st.integers(0, 5_000), min_size=200, max_size=200),
)
def test_no_order_of_calls_gets_more_than_the_rate_and_one_burst(
    rate: float, gaps: list[float], sizes: list[int]
) -> None:
    """And what is told to wait is admitted when it has waited."""
    account = Account(Rates(calls_per_s=rate, bytes_per_s=1_000))
    now_s = start_s = 100.0
    calls = size = last = 0
    for gap_s, size_bytes in zip(gaps, sizes, strict=False):
        now_s += gap_s
        delay_s = account.take(now_s)
        if delay_s:
            now_s += delay_s + 2e-6
            assert account.take(now_s) == 0.0
        calls += 1
        account.charge(0, size_bytes)
        size, last = size + size_bytes, size_bytes
    elapsed_s = now_s - start_s
    assert calls <= max(rate, 1) + elapsed_s * rate + 1
    assert size - last <= 1_000 * (1 + elapsed_s) + 5_000


def test_a_new_file_with_other_rates_begins_anew_and_one_with_the_same_does_not() -> None:
    from dbos_actors.access.principals import Principal  # noqa: PLC0415 - of this test alone
    from dbos_actors.access.roles import Role  # noqa: PLC0415

    principal = Principal("p", Role.READER)
    principal.limit(Rates(calls_per_s=1))
    assert principal.account is not None
    before = principal.account
    principal.limit(Rates(calls_per_s=1))
    assert principal.account is before
    principal.limit(Rates(calls_per_s=2))
    assert principal.account is not before
    principal.limit(Rates())
    assert principal.account is None


def test_one_agent_beyond_its_quota_takes_nothing_from_another() -> None:
    now_s = 7.0
    quotas = AgentQuotas(Rates(calls_per_s=10), lambda: now_s)
    for _ in range(10):
        quotas.take("busy", 100)
    with pytest.raises(QuotaError, match="the agent 'busy' has used up the quota of 10 calls a s"):
        quotas.take("busy", 100)
    quotas.take("calm", 100)
    assert quotas.refused_total == 1


def test_random_ids_do_not_make_the_accounts_grow() -> None:
    quotas = AgentQuotas(Rates(calls_per_s=10), lambda: 7.0)
    choose = random.Random(1)
    for _ in range(AGENTS_MAX + 1_000):
        quotas.take(str(choose.getrandbits(64)), 1)
    assert len(quotas._accounts) == AGENTS_MAX
