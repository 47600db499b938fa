"""A run's first interval follows what the market did to nodes like its own."""

from __future__ import annotations

import json

import pytest

from sundog.clock import ManualClock
from sundog.ledger import Entry, RootLedger
from sundog.runs.failures import losses_per_worker_hour, market_rate
from sundog.runs.interval import LOSSES_PER_WORKER_HOUR, loss_rate
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

DAY_S = 86400.0


@pytest.fixture
def clock():
    return ManualClock(1_700_000_000.0)


@pytest.fixture
def root(tmp_path, clock):
    """Zone rough took back 8 of 10 nodes an hour after their launch, zone calm none of 10 in ten days."""
    root = open_root(str(tmp_path))
    ledger = RootLedger(root)
    for zone, hours, taken in (("rough", 1, 8), ("calm", 240, 0)):
        for i in range(10):
            node, about = f"{zone}{i}", {"market": "spot", "zone": zone, "shape": "g5.xlarge"}
            start_s = clock.now_s() - 20 * DAY_S
            ledger.append(Entry("launch", start_s, node, "c", 1.0, about))
            if i < taken:
                ledger.append(Entry("interruption", start_s + hours * 3600, node, "c"))
            ledger.append(Entry("terminate", start_s + hours * 3600, node, "c"))
    nodes = {"r": ("rough", "spot"), "c": ("calm", "spot"), "d": ("rough", "on-demand"),
             "u": ("unknown", "spot")}  # fmt: skip
    for node, (zone, market) in nodes.items():
        record = {"format": 1, "zone": zone, "shape": "g5.xlarge", "market": market}
        root.write(f"nodes/{node}.json", json.dumps(record).encode())
    return root


def test_the_prior_is_that_of_spot_nodes_in_the_zone_and_of_the_shape(root, clock):
    assert market_rate(root, ["r"], clock) == pytest.approx(9 / 20)
    assert market_rate(root, ["c"], clock) == pytest.approx(1 / 2410)
    assert market_rate(root, ["r", "c"], clock) == pytest.approx((9 / 20 + 1 / 2410) / 2)
    for nodes in (["u"], ["d"], ["no-record"], []):
        assert market_rate(root, nodes, clock) == LOSSES_PER_WORKER_HOUR
    clock.advance(60 * DAY_S)
    assert market_rate(root, ["r"], clock) == LOSSES_PER_WORKER_HOUR


def test_the_run_s_own_record_comes_on_top(root, clock):
    folder = new_run(root, "r", "r-1", clock=clock)
    assert losses_per_worker_hour(folder, ["r"], clock) == pytest.approx(9 / 20)
    folder.update(node_hours=100.0, changes=[{"event": "run.recovered"}, {"event": "run.resized"}])
    assert losses_per_worker_hour(folder, ["r"], clock) == pytest.approx(
        loss_rate(1, 100.0, 9 / 20)
    )


def test_a_ledger_that_cannot_be_read_costs_the_estimate_only(root, clock):
    root.write("ledger/2023-11-14/bad.json", b"?")
    assert market_rate(root, ["r"], clock) == LOSSES_PER_WORKER_HOUR
