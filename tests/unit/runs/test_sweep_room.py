"""Trials and their workers fit together into what there is, and spot is asked for while it has room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sweep_space import RUN, spec

from sundog.rayapi.train_nodes import MARKET
from sundog.runs.sweep_room import Room, Sizes, sizes


def of(workers, concurrent="auto"):
    return spec(run={**RUN, "workers": workers, "batch": 64}, concurrent=concurrent)


@pytest.mark.parametrize(
    ("workers", "concurrent", "places", "expected"),
    [
        (1, "auto", 4, Sizes(1, 4)),
        (2, "auto", 5, Sizes(2, 2)),
        ("1..4", "auto", 4, Sizes(1, 4)),  # more trials before wider ones
        ("1..4", 2, 8, Sizes(4, 2)),
        ("2..4", 2, 6, Sizes(3, 2)),
        (2, 8, 4, Sizes(2, 2)),
        (4, "auto", 1, Sizes(4, 1)),  # refused elsewhere; here it only waits
    ],
)
def test_sizes(workers, concurrent, places, expected):
    assert sizes(of(workers, concurrent), places, trials=16, may_grow=False) == expected


def test_few_trials_are_wide_ones():
    assert sizes(of("1..8"), 8, trials=2, may_grow=False) == Sizes(4, 2)


def test_a_cluster_that_grows_is_taken_at_its_word():
    assert sizes(of(2, 8), 2, trials=16, may_grow=True) == Sizes(2, 8)


@given(
    st.integers(1, 4), st.integers(0, 4), st.integers(0, 40), st.integers(1, 50),
    st.one_of(st.just("auto"), st.integers(1, 20)),
)  # fmt: skip
def test_what_runs_at_once_always_fits(low, more, places, trials, concurrent):
    found = sizes(of(f"{low}..{low + more}", concurrent), places, trials, may_grow=False)
    assert low <= found.workers <= low + more
    assert found.at_once == 1 or found.at_once * found.workers <= places


def test_a_trial_reserves_all_its_workers_or_none():
    request = Room({"CPU": 2.0, "GPU": 0.25}, 3, "any", lambda market: 0).request()
    assert request.bundles == [{"CPU": 2.0, "GPU": 0.25}] * 3
    assert request.head_bundle_is_empty  # its own process takes nothing
    alone = Room({"CPU": 1.0, "GPU": 0.0}, 1, "any", lambda market: 0).request()
    assert alone.bundles == [{"CPU": 1.0}]
    assert not alone.head_bundle_is_empty


@pytest.mark.parametrize(
    ("market", "free", "before", "label"),
    [
        ("spot-first", 2, 0, "spot"),
        ("spot-first", 1, 0, None),
        ("spot-first", 3, 1, None),  # one that waits takes two of the three
        ("spot-only", 0, 0, "spot"),
        ("on-demand", 9, 0, "on-demand"),
        ("any", 9, 0, None),
    ],
)
def test_spot_comes_first_while_it_has_room(market, free, before, label):
    asked = []
    room = Room({"CPU": 1.0}, 2, market, lambda name: asked.append(name) or free)
    selector = room.request(before)._kwargs.get("bundle_label_selector")
    assert selector == ([{MARKET: label}] * 2 if label else None)
    assert asked in ([], ["spot"])
