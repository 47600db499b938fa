"""The offline optimum: by hand, by brute force, and below every policy that meets the SLO."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.sim.replicas import Setting, simulate, warm_start
from sundog.sim.scaling_optimum import optimum, work_by
from sundog.sim.scaling_policies import Fixed, policies
from sundog.sim.traces import Trace, from_rates


def trace(arrivals: list[float], service_s: float, duration_s: float) -> Trace:
    return Trace("t", np.asarray(arrivals), np.full(len(arrivals), service_s), duration_s)


def test_work_arrives_as_it_would_be_done_without_waiting() -> None:
    requests = trace([0.0, 1.0], 4.0, 10.0)
    at_s = np.asarray([0.0, 1.0, 2.0, 4.0, 5.0, 9.0])
    done = work_by(requests, Setting(left_out_s=0.0), at_s)
    assert done == pytest.approx([0.0, 1.0, 3.0, 7.0, 8.0, 8.0])


def test_steady_work_for_two_replicas_costs_two_replicas() -> None:
    steady = trace(list(np.arange(0.0, 100.0, 0.5)), 8.0, 100.0)
    best = optimum(steady, Setting(left_out_s=20.0))
    # 16 slots are busy at any time from 28 s on; before that the work builds up.
    assert 2 * 72.0 - 2 * 8.0 <= best.lower <= best.upper <= 2 * 80.0


def test_a_lull_shorter_than_a_start_is_sat_out_and_a_longer_one_is_not() -> None:
    def bill(lull_s: float) -> float:
        first = np.arange(0.0, 40.0, 0.25)
        both = np.concatenate([first, first + 40.0 + lull_s])
        requests = Trace("t", both, np.full(len(both), 1.9), 80.0 + lull_s)
        return optimum(
            requests, Setting(slots=4, left_out_s=0.0, wait_slo_s=0.0, startup_s=20.0, initial=1)
        ).lower

    # Two replicas in the bursts, one in a long lull, a start (20 s) for the second burst.
    assert bill(10.0) == pytest.approx(2 * 80 + 2 * 10, abs=8)
    assert bill(100.0) == pytest.approx(2 * 80 + 100 + 20, abs=8)


def brute_force(come: list[int], wait_ticks: int, most: int, setting: Setting) -> float:
    """Every sequence of counts, work in whole replica-ticks served as soon as it can be."""
    best = math.inf
    for counts in itertools.product(range(setting.min_replicas, most + 1), repeat=len(come)):
        backlog, bill, before, late = 0, 0.0, counts[0], False
        recent: list[int] = []
        for tick, (count, work) in enumerate(zip(counts, come, strict=True)):
            bill += setting.tick_s * count
            bill += max(count - before, 0) * min(setting.startup_s, tick * setting.tick_s)
            before = count
            recent = [*recent, work][-wait_ticks:] if wait_ticks else []
            backlog = max(0, backlog + work - count)
            late = late or backlog > sum(recent)
        if not late:
            best = min(best, bill)
    return best


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 2), st.integers(0, 1))
def test_it_equals_brute_force_on_small_cases(come: list[int], wait_ticks: int, least: int) -> None:
    setting = Setting(
        slots=1,
        startup_s=3.0,
        left_out_s=0.0,
        wait_slo_s=2.0 * wait_ticks,
        min_replicas=least,
        max_replicas=4,
    )
    # A tick's work: requests that fill it from its beginning to its end.
    arrivals = [2.0 * tick for tick, work in enumerate(come) for _ in range(work)]
    best = optimum(trace(arrivals, 2.0, 2.0 * len(come)), setting, unit_slot_s=2.0)
    assert best.lower == pytest.approx(brute_force(come, wait_ticks, 4, setting))
    assert best.upper == pytest.approx(best.lower)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000))
def test_no_policy_that_meets_the_slo_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.integers(5, 120, 8), 75)
    requests = from_rates("steps", rng.poisson(levels), seed=seed)
    setting = warm_start(requests, Setting())
    best = optimum(requests, setting)
    assert best.lower <= best.upper
    candidates = {
        **policies(setting, requests.mean_service_s),
        **{f"{count}": Fixed(count) for count in range(1, 7)},
    }
    met = 0
    for policy in candidates.values():
        outcome = simulate(requests, policy, setting)
        if outcome.slo_attainment == 1.0:
            met += 1
            assert outcome.bill_replica_s >= best.lower - 1e-6
    assert met


def test_a_finer_grid_brings_the_bounds_together() -> None:
    requests = from_rates("noise", np.random.default_rng(3).poisson(100, 400))
    coarse, fine = (optimum(requests, unit_slot_s=unit) for unit in (16.0, 0.5))
    assert coarse.lower <= fine.lower <= fine.upper <= coarse.upper
    assert fine.upper - fine.lower <= 0.01 * fine.lower
