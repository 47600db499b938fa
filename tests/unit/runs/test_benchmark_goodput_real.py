"""The real half of the goodput benchmark: how a trace is thinned, and that its account adds up."""

from __future__ import annotations

import goodput_real as bench
import pytest


def test_a_trace_keeps_its_shape_when_it_is_thinned():
    counts = [(0, 32), (100, 24), (110, 23), (200, 8), (300, 0), (400, 32), (500, 31)]
    events = bench.thinned(counts, most=4, changes=10, seconds=50)
    assert [e.nodes for e in events] == [4, 3, 1, 4]
    assert events[0].at_s == 0
    assert events[-1].at_s < 50
    assert events[1].at_s / events[2].at_s == pytest.approx(0.5)
    assert len(bench.thinned(counts, most=4, changes=2, seconds=50)) == 3


def test_every_node_second_is_accounted_for():
    replay = bench.Replay(group=None, most=2, notice=False)
    a, b = object(), object()
    replay.nodes = [bench.Node(0.0, a, 4.0), bench.Node(1.0, b, 6.0, removed_s=20.0)]
    replay.generations = [
        bench.Generation([a], 4.0, 0, first_s=4.5, last_s=7.0, steps=100),
        bench.Generation([a, b], 7.2, 100, first_s=7.5, last_s=19.9, steps=500),
        bench.Generation([a], 20.5, 600, first_s=21.0, last_s=29.9, steps=300),
    ]
    account = replay._account(30.0)
    assert account.available == pytest.approx(30.0 + 19.0)
    assert account.losses["startup"] == pytest.approx(4.0 + 5.0)
    assert account.losses["idle"] == pytest.approx(1.2)  # b was warm before it joined
    # 0.5 + 0.2 + 0.3 + 0.6 + 0.5 of a, 0.3 + 0.1 of b
    assert account.losses["restart"] == pytest.approx(2.5)
    assert replay.measured.step
