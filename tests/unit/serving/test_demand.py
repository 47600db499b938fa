"""Demand from counts, against hand-computed cases."""

from __future__ import annotations

import math

import pytest

from sundog.serving import calendar
from sundog.serving.demand import (
    ServiceTime,
    add_bin,
    demand_slots,
    noise_slots,
    slope_slots_s,
)
from sundog.serving.warmth import Idle, is_warm, keep_warm_s, observe


def test_demand_is_the_worst_window_against_its_deadline() -> None:
    # 100 requests of 1 s in the last 2 s, nothing before: 100 / (2 + 5 + 1).
    assert demand_slots(((2.0, 0.0), (2.0, 100.0)), 1.0, 5.0) == pytest.approx(12.5)
    # A steady 10/s for a minute: 600 / (60 + 6).
    assert demand_slots(((2.0, 20.0),) * 30, 1.0, 5.0) == pytest.approx(600 / 66)
    assert demand_slots((), 1.0, 5.0) == 0.0


def test_short_steps_share_a_bin_and_old_bins_fall_off() -> None:
    bins: tuple[tuple[float, float], ...] = ()
    for _ in range(8):
        bins = add_bin(bins, 0.5, 3, keep_s=60.0)
    assert bins == ((2.0, 12.0), (2.0, 12.0))
    for _ in range(100):
        bins = add_bin(bins, 2.0, 1, keep_s=60.0)
    assert len(bins) == 30


def test_a_line_has_its_slope_and_noise_has_none() -> None:
    line = tuple((2.0, 2.0 * (1000 + 10 * second)) for second in range(1, 60, 2))
    assert slope_slots_s(line, 60.0, 0.5) == pytest.approx(5.0, rel=0.4)
    assert slope_slots_s(line, 60.0, 0.5) < 5.0
    noise = tuple((2.0, 100.0 + 20 * math.sin(7.0 * number)) for number in range(30))
    assert slope_slots_s(noise, 60.0, 0.5) == 0.0
    falling = tuple(reversed(line))
    assert slope_slots_s(falling, 60.0, 0.5) == pytest.approx(-slope_slots_s(line, 60.0, 0.5))


def test_service_time_moves_from_its_prior_to_what_is_seen() -> None:
    service = ServiceTime.prior(1.0)
    assert service.spread == pytest.approx(2.0)
    for _ in range(100):
        service = service.learn(100, 50.0, 25.0)
    assert service.mean_s == pytest.approx(0.5, rel=0.02)
    assert service.spread == pytest.approx(1.0, rel=0.05)
    assert service.learn(0, 0.0, None) == service


def test_where_nobody_sums_squares_the_spread_stays_what_it_was() -> None:
    service = ServiceTime.prior(1.0)
    for tick in range(5000):
        # A few requests of uneven length each time: the mean of a sample moves, the spread not.
        service = service.learn(4, 2.0 if tick % 2 else 6.0, None, rate_s=2.0)
    assert service.spread == pytest.approx(2.0)
    assert service.mean_s == pytest.approx(1.0, rel=0.01)


def test_noise_is_smoothed_by_the_wait_allowed_and_never_beyond_poisson() -> None:
    quick, slow = ServiceTime.prior(0.1), ServiceTime.prior(20.0)
    assert noise_slots(16.0, quick, 5.0, 1.0) == pytest.approx(4 * math.sqrt(0.2 / 5.1))
    assert noise_slots(16.0, slow, 5.0, 1.0) == pytest.approx(4.0)
    assert noise_slots(0.0, slow, 5.0, 1.0) == 0.0


def test_an_onset_is_due_half_an_hour_a_day_and_a_week_later() -> None:
    onsets = calendar.remember((), 1000.0, 40.0, overrun=True, risen=True)
    onsets = calendar.remember(onsets, 1060.0, 55.0, overrun=False, risen=False)
    assert onsets == ((1000.0, 55.0),)
    for period_s in calendar.PERIODS_S:
        assert calendar.expected_slots(onsets, 1000.0 + period_s - 60.0, 60.0) == 55.0
    assert calendar.expected_slots(onsets, 2000.0, 60.0) == 0.0
    # It came although nothing was overrun: remembered anew.
    again = calendar.remember(onsets, 2810.0, 50.0, overrun=False, risen=True)
    assert again[-1] == (2810.0, 50.0)
    # It did not come, or was no rise: not remembered.
    assert calendar.remember(onsets, 2810.0, 50.0, overrun=False, risen=False) == onsets
    assert calendar.remember(onsets, 2810.0, 10.0, overrun=False, risen=True) == onsets


def test_staying_warm_costs_at_most_a_cold_start_and_learns_the_gaps() -> None:
    assert keep_warm_s(Idle(), 300.0) == 300.0
    short = Idle(gaps_s=(40.0,) * 10)
    assert 40.0 <= keep_warm_s(short, 300.0) < 50.0
    hopeless = Idle(gaps_s=(5000.0,) * 10)
    assert keep_warm_s(hopeless, 300.0) == 0.0
    idle = observe(Idle(), 100.0, busy=False)
    assert is_warm(idle, 150.0, 60.0)
    assert not is_warm(idle, 161.0, 60.0)
    assert observe(idle, 200.0, busy=True).gaps_s == (100.0,)
