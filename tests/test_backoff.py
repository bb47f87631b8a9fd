from __future__ import annotations

import random
from itertools import pairwise

import pytest

from dbos_actors.backoff import Backoff, BackoffPolicy


def test_pauses_grow_to_their_limit_and_start_anew_after_a_success() -> None:
    backoff = Backoff(BackoffPolicy(jitter=0), random.Random(1))
    pauses = [backoff.next_s() for _ in range(15)]
    assert pauses[:3] == pytest.approx([1.0, 1.6, 2.56])
    assert all(later == min(earlier * 1.6, 120) for earlier, later in pairwise(pauses))
    assert pauses[-1] == 120
    backoff.reset()
    assert backoff.next_s() == 1.0


def test_pauses_are_spread_by_their_jitter() -> None:
    pauses = [Backoff(BackoffPolicy(), random.Random(seed)).next_s() for seed in range(200)]
    assert 0.8 <= min(pauses) < 0.85
    assert 1.15 < max(pauses) <= 1.2


def test_a_policy_may_have_the_second_attempt_follow_at_once() -> None:
    policy = BackoffPolicy(at_once=True, first_s=0.1, factor=2.0, max_s=0.5)
    assert [policy.pause_s(failures) for failures in range(6)] == pytest.approx(
        [0, 0, 0.1, 0.2, 0.4, 0.5]
    )


def test_the_pause_after_any_number_of_failures_is_found_in_few_steps() -> None:
    assert BackoffPolicy(first_s=1.0, factor=2.0, max_s=60.0).pause_s(10**9) == 60.0
    assert BackoffPolicy(first_s=1.0, factor=1.0, max_s=60.0).pause_s(10**9) == 1.0
    assert BackoffPolicy(first_s=5.0, max_s=2.0).pause_s(1) == 2.0


@pytest.mark.parametrize("jitter", [0.2, 1.0])
def test_a_pause_is_made_longer_or_shorter_by_up_to_the_jitter(jitter: float) -> None:
    policy, dice = BackoffPolicy(jitter=jitter), random.Random(7)
    pauses = [policy.pause_s(1, dice) for _ in range(1_000)]
    assert 1 - jitter <= min(pauses) < 1 - 0.98 * jitter
    assert 1 + 0.98 * jitter < max(pauses) <= 1 + jitter
