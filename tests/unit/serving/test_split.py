"""Splitting: exact to 0.1% over 100,000 requests, sticky within binomial bounds."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.serving.split import Split


@pytest.mark.parametrize("weight", [0.001, 0.01, 0.05, 0.25, 1 / 3, 0.5])
@pytest.mark.parametrize("start", [0, 7, 123_456])
def test_a_hundred_thousand_requests_are_split_exactly(weight, start):
    split = Split({"v2": weight, "v1": 1 - weight}, start=start)
    seen = Counter(split.choose() for _ in range(100_000))
    assert abs(seen["v2"] / 100_000 - weight) <= 0.001
    assert abs(seen["v2"] - 100_000 * weight) <= 12


def test_every_thousand_requests_are_split_too():
    split = Split({"v2": 0.05, "v1": 0.95})
    for _ in range(50):
        assert abs(Counter(split.choose() for _ in range(1000))["v2"] - 50) <= 5


def test_requests_that_alternate_are_not_sorted_by_the_split():
    split = Split({"v2": 0.5, "v1": 0.5})
    even = Counter(split.choose() for i in range(100_000) if split.choose() and i % 2 == 0)
    assert abs(even["v2"] / even.total() - 0.5) <= 0.01


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_any_number_of_versions(parts):
    weights = {f"v{i}": p / sum(parts) for i, p in enumerate(parts)}
    split = Split(weights)
    seen = Counter(split.choose() for _ in range(20_000))
    assert all(abs(seen[v] / 20_000 - w) <= 0.001 for v, w in weights.items())


@pytest.mark.parametrize("weight", [0.01, 0.25, 0.5])
def test_sticky_keys_are_split_within_binomial_bounds(weight):
    split = Split({"v2": weight, "v1": 1 - weight}, salt="digits/7")
    num = 20_000
    seen = sum(split.sticky(f"user-{i}") == "v2" for i in range(num))
    assert abs(seen - num * weight) <= 4 * math.sqrt(num * weight * (1 - weight))


def test_a_key_keeps_its_version_on_another_gateway_and_as_the_weight_grows():
    keys = [f"user-{i}" for i in range(5000)]
    few = Split({"v2": 0.05, "v1": 0.95}, salt="s", start=1)
    more = Split({"v2": 0.25, "v1": 0.75}, salt="s", start=9)
    assert [few.sticky(k) for k in keys] == [few.sticky(k) for k in keys]
    assert all(more.sticky(k) == "v2" for k in keys if few.sticky(k) == "v2")


def test_another_rollout_tries_other_users_first():
    keys = [f"user-{i}" for i in range(2000)]
    one, two = (Split({"v2": 0.1, "v1": 0.9}, salt=s) for s in ("1", "2"))
    assert {k for k in keys if one.sticky(k) == "v2"} != {k for k in keys if two.sticky(k) == "v2"}


def test_a_version_without_weight_gets_nothing():
    split = Split({"v2": 0.0, "v1": 1.0})
    assert {split.choose() for _ in range(1000)} == {"v1"} == {split.sticky("x")}


@pytest.mark.parametrize("weights", [{"v1": 0.5}, {"v1": 1.5, "v2": -0.5}, {}])
def test_weights_that_do_not_add_up_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        Split(weights)
