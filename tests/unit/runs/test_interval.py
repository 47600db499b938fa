from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.runs.interval import Cadence, loss_rate, young_daly_s


def waste(interval_s: float, cost_s: float, mtbf_s: float) -> float:
    """Share of time lost to saves and to work done again, to first order."""
    return cost_s / interval_s + interval_s / (2 * mtbf_s)


@given(cost_s=st.floats(0.01, 10), mtbf_s=st.floats(600, 1e5))
def test_no_other_interval_wastes_much_less(cost_s, mtbf_s):
    best = young_daly_s(cost_s, mtbf_s)
    for factor in (0.5, 0.8, 1.25, 2):
        assert waste(best, cost_s, mtbf_s) < waste(best * factor, cost_s, mtbf_s) + 1e-3


def test_young_s_formula_when_saves_are_cheap():
    assert young_daly_s(1.0, 20_000.0) == pytest.approx((2 * 20_000.0) ** 0.5, rel=0.01)


def test_saves_that_cost_more_than_a_failure_are_as_rare_as_failures():
    assert young_daly_s(100, 40) == 40


@pytest.mark.parametrize(
    ("every", "steps", "seconds", "due"),
    [(10, 9, 1e9, False), (10, 10, 0, True), ("60s", 1, 59, False), ("60s", 1, 60, True),
     ("60s", 0, 99, False), ("auto", 1, 1e6, True), ("auto", 1, 0.5, False)],
)  # fmt: skip
def test_when_a_save_is_due(every, steps, seconds, due):
    assert Cadence(every).due(steps, seconds) is due


def test_dearer_saves_and_more_workers_change_the_interval():
    cheap, dear, many = Cadence(), Cadence(), Cadence(workers=64)
    for _ in range(10):
        dear.saw_stall(30.0)
    assert dear.interval_s > cheap.interval_s > many.interval_s


def test_a_run_that_loses_workers_more_often_saves_more_often():
    assert loss_rate(0, 0.0) == pytest.approx(0.1)
    assert loss_rate(0, 1000.0) < 0.001
    assert loss_rate(50, 100.0) == pytest.approx(51 / 110)
    calm, rough = (Cadence("auto", 4, loss_rate(losses, 10.0), cost_s=0.5) for losses in (0, 40))
    assert rough.interval_s < calm.interval_s / 3
