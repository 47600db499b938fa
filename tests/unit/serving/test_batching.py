"""Batch sizes that follow what calls cost: within the bound, never above the spec, back when it is over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.serving.batching import BatchSize


def run(size, base_s, row_s, calls=300, waiting=10_000):
    for _ in range(calls):
        rows = min(size.now, waiting)
        size.observed(rows, base_s + row_s * rows)
    return size.now


def test_without_a_bound_the_spec_decides():
    size = BatchSize(64)
    assert run(size, 1.0, 1.0) == 64


@pytest.mark.parametrize(
    ("base_s", "row_s", "fits"),
    [(0.010, 0.001, 40), (0.0, 0.005, 10), (0.001, 0.0001, 64), (0.2, 0.1, 2), (0.2, 0.0, 64)],
)
def test_the_largest_size_that_is_in_time_is_found(base_s, row_s, fits):
    found = run(BatchSize(64, 0.05), base_s, row_s)
    assert fits * 0.75 <= found <= fits * 1.1


def test_a_model_that_becomes_slow_gets_less_and_then_more_again():
    size = BatchSize(64, 0.05)
    fast = run(size, 0.001, 0.0005)
    slow = run(size, 0.001, 0.01)
    assert slow <= 6 < 48 <= fast
    assert run(size, 0.001, 0.0005) >= 48


def test_what_was_learnt_stays_when_the_spec_changes():
    size = BatchSize(64, 0.05)
    run(size, 0.0, 0.005)
    size.limit(4, 0.05)
    assert size.now == 4
    size.limit(64, 0.05)
    assert 8 <= size.now <= 11
    size.limit(64, None)
    assert size.now == 64


@given(
    st.integers(1, 512),
    st.floats(1e-4, 10),
    st.lists(st.tuples(st.integers(0, 600), st.floats(0, 100)), max_size=80),
)
def test_it_is_always_a_size(most, bound_s, calls):
    size = BatchSize(most, bound_s)
    for rows, seconds in calls:
        size.observed(rows, seconds)
        assert 1 <= size.now <= most
