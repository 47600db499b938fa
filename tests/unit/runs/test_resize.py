from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.runs.resize import Snapshot, decide

BASE = {
    "working": 4, "lost": 0, "leaving": 0, "warm": 0, "warming": 0, "low": 2, "high": 8,
    "grow_pause_s": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "what", "workers", "why"),
    [
        ({}, "keep", 4, "nobody"),
        ({"warm": 2}, "grow", 6, "2 warm"),
        ({"warm": 9}, "grow", 8, "4 warm"),
        ({"working": 3, "lost": 1}, "shrink", 3, "1 lost"),
        ({"working": 3, "lost": 1, "warm": 1}, "shrink", 4, "1 lost"),
        ({"leaving": 1}, "shrink", 3, "1 under notice"),
        ({"working": 1, "lost": 3}, "wait", 2, "needs at least 2"),
        ({"working": 0, "warm": 1}, "wait", 2, "1 more"),
        ({"working": 0, "warm": 3}, "grow", 3, "3 workers are ready"),
        ({"warm": 1, "left_s": 2.0}, "keep", 4, "before a pause"),
        ({"warm": 1, "warming": 1, "next_warm_s": 0.5}, "keep", 4, "nearly warm"),
        ({"warm": 1, "warming": 1, "next_warm_s": 60}, "grow", 5, "1 warm"),
    ],
)
def test_decisions_and_their_reasons(changes, what, workers, why):
    decision = decide(Snapshot(**{**BASE, **changes}))
    assert (decision.what, decision.workers) == (what, workers)
    assert why in decision.why


@given(
    working=st.integers(0, 10), lost=st.integers(0, 4), warm=st.integers(0, 10),
    low=st.integers(1, 5), more=st.integers(0, 8), data=st.data(),
)  # fmt: skip
def test_never_outside_the_range_and_never_more_than_are_there(
    working, lost, warm, low, more, data
):
    leaving = data.draw(st.integers(0, working))
    now = Snapshot(working, lost, leaving, warm, 0, low, low + more, 1.0)
    decision = decide(now)
    if decision.what in ("grow", "shrink"):
        assert low <= decision.workers <= low + more
        assert decision.workers <= working - leaving + warm
