"""The queue of replicas against hand-computed cases and queueing theory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sundog.sim.replicas import Observation, Setting, simulate, warm_start
from sundog.sim.scaling_policies import Fixed
from sundog.sim.traces import Trace


def trace(arrivals: list[float], service_s: float, duration_s: float = 60.0) -> Trace:
    return Trace("t", np.asarray(arrivals), np.full(len(arrivals), service_s), duration_s)


PLAIN = Setting(slots=1, startup_s=10.0, left_out_s=0.0)


def test_one_slot_serves_in_order() -> None:
    outcome = simulate(trace([0.0, 0.5, 1.0, 9.0], 2.0), Fixed(1), PLAIN)
    assert outcome.wait_s == pytest.approx([0.0, 1.5, 3.0, 0.0])
    assert outcome.slo_attainment == 1.0
    assert outcome.bill_replica_s == 60.0


def test_slots_work_side_by_side_and_late_requests_count() -> None:
    two = Setting(slots=2, left_out_s=0.0, wait_slo_s=1.0)
    outcome = simulate(trace([0.0, 0.0, 0.0, 0.0], 3.0), Fixed(1), two)
    assert outcome.wait_s == pytest.approx([0.0, 0.0, 3.0, 3.0])
    assert outcome.slo_attainment == 0.5


def test_a_start_is_billed_from_the_decision_and_serves_when_it_is_ready() -> None:
    outcome = simulate(trace([0.0, 1.0], 30.0), Fixed(2), PLAIN)
    # Ready at 10 s; the second request has waited since 1 s.
    assert outcome.wait_s == pytest.approx([0.0, 9.0])
    assert outcome.bill_replica_s == 2 * 60.0
    assert outcome.starts == 1
    assert outcome.ready[:6].tolist() == [1, 1, 1, 1, 1, 2]


def test_a_replica_that_leaves_finishes_its_work_and_is_billed_for_it() -> None:
    def policy(seen: Observation) -> int:
        return 2 if seen.now_s < 4.0 else 1

    begin = Setting(slots=1, left_out_s=0.0, initial=2)
    outcome = simulate(trace([0.0, 1.0, 5.0], 9.0, 20.0), policy, begin)
    # Told to leave one at 4 s: the one that is free first (9 s) drains until then.
    assert outcome.billed.tolist() == [2, 2, 2, 2, 2, 1, 1, 1, 1, 1]
    assert outcome.wait_s == pytest.approx([0.0, 0.0, 5.0])


def test_a_start_that_is_called_off_is_billed_only_until_then() -> None:
    def policy(seen: Observation) -> int:
        return 3 if seen.now_s < 4.0 else 1

    outcome = simulate(trace([0.0], 1.0, 20.0), policy, PLAIN)
    assert outcome.billed.tolist() == [3, 3] + [1] * 8


def test_the_first_seconds_are_left_out_of_bill_and_slo() -> None:
    outcome = simulate(trace([0.0, 0.0, 50.0], 20.0), Fixed(1), Setting(slots=1, left_out_s=40.0))
    assert outcome.slo_attainment == 1.0
    assert outcome.bill_replica_s == 20.0


def test_what_waits_at_the_end_is_served_unbilled_and_what_never_is_counts_as_late() -> None:
    outcome = simulate(trace([58.0, 59.0], 10.0), Fixed(1), PLAIN)
    assert outcome.wait_s == pytest.approx([0.0, 9.0])
    assert len(outcome.billed) == 30
    never = simulate(trace([1.0], 1.0), Fixed(0), Setting(initial=0, left_out_s=0, min_replicas=0))
    assert math.isinf(never.wait_s[0])
    assert never.slo_attainment == 0.0


def test_the_policy_sees_what_happened() -> None:
    seen: list[Observation] = []

    def policy(observation: Observation) -> int:
        seen.append(observation)
        return 1

    simulate(trace([0.5, 0.6, 1.0], 1.5, 8.0), policy, PLAIN)
    assert [one.arrivals for one in seen] == [0, 3, 0, 0]
    assert [one.queued for one in seen] == [0, 2, 0, 0]
    assert [one.running for one in seen] == [0, 1, 1, 0]
    # They end at 2.0, 3.5 and 5.0 s.
    assert [one.completions for one in seen] == [0, 0, 2, 1]
    assert seen[2].completed_service_s == 3.0
    assert seen[2].completed_service_sq_s2 == 4.5


def test_waits_agree_with_erlang_c() -> None:
    """M/M/c: P(wait) and the mean wait, within what 300,000 requests tell."""
    servers, load, service_s = 8, 6.4, 0.2
    rng = np.random.default_rng(7)
    number = 300_000
    arrivals = np.cumsum(rng.exponential(service_s / load, number))
    busy = Trace("mmc", arrivals, rng.exponential(service_s, number), float(arrivals[-1]))
    outcome = simulate(busy, Fixed(1), Setting(slots=servers))
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    waits = last / (sum(terms) + last)
    assert (outcome.wait_s > 1e-9).mean() == pytest.approx(waits, rel=0.03)
    mean_s = waits * service_s / (servers - load)
    assert outcome.wait_s.mean() == pytest.approx(mean_s, rel=0.1)


def test_a_warm_start_has_what_the_first_minute_needs() -> None:
    # 32 slots' work for a minute.
    steady = trace(list(np.arange(0.0, 60.0, 0.05)), 1.6)
    assert warm_start(steady, Setting()).initial == 5
    assert warm_start(trace([], 1.0), Setting()).initial == 1
