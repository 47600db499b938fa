"""Synthetic families: an hour each, the same for the same seed, different for another."""

from __future__ import annotations

import numpy as np
import pytest

from sundog.sim.trace_families import FAMILIES, HOUR_S, office_day


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_is_an_hour_and_its_seed_decides_it(name: str) -> None:
    one, again, other = (FAMILIES[name](seed) for seed in (1, 1, 2))
    assert one.name == f"{name}-1"
    assert one.duration_s == HOUR_S
    assert len(one) == len(one.service_s) > 1000
    assert (one.arrival_s == again.arrival_s).all()
    assert (one.service_s == again.service_s).all()
    assert len(other) != len(one) or (other.arrival_s != one.arrival_s).any()
    assert (np.diff(one.arrival_s) >= 0).all()
    assert one.arrival_s.max() < HOUR_S
    assert one.service_s.min() > 0


def test_an_office_day_has_silent_nights_and_two_humps() -> None:
    trace = office_day()
    hours = np.bincount((trace.arrival_s * 24 / HOUR_S).astype(int), minlength=24)
    assert hours[:7].sum() == hours[20:].sum() == 0
    assert hours[11] > hours[13] < hours[16]
    assert 0.9 < trace.mean_service_s < 1.1
