from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from sundog.clock import WALL, ManualClock
from sundog.errors import RunError
from sundog.runs import drill
from sundog.runs.bill import Bill, Prices
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder, new_run

PLACED = [{"node_id": "head", "host": "h0", "pid": 10}, {"node_id": "n1", "host": "h1", "pid": 11}]


@pytest.fixture
def clock():
    return ManualClock(1_700_000_000.0)


@pytest.fixture
def folder(tmp_path, clock):
    folder = new_run(open_root(str(tmp_path)), "r", "r-1", clock=clock)
    folder.update(state="running", placed=PLACED)
    return folder


def test_the_last_worker_is_hit_and_a_node_s_fault_spares_the_head():
    record = {"run_id": "r-1", "state": "running", "placed": PLACED}
    assert drill.choose(record, drill.KILL_WORKER, "head").pid == 11
    swapped = record | {"placed": PLACED[::-1]}
    target = drill.choose(swapped, drill.KILL_NODE, "head")
    assert (target.rank, target.node_id) == (0, "n1")
    assert "kill -9 of Ray on node h1" in target.question
    with pytest.raises(RunError, match="on the head node"):
        drill.choose(record | {"placed": PLACED[:1]}, drill.NOTICE, "head")
    with pytest.raises(RunError, match="it is finished"):
        drill.choose(record | {"state": "finished"}, drill.KILL_WORKER)


def recovered(folder: RunFolder, clock: ManualClock) -> float:
    since_s = clock.now_s()
    clock.advance(1)
    folder.event("run.recovered", step=40, steps_back=1, took_s=1.8, workers=[2, 1],
                 stages={"noticed": 0.4, "parked": 1.0})  # fmt: skip
    return since_s


def test_the_receipt_has_stages_steps_and_dollars_by_the_nodes_prices(folder, clock):
    for node, usd in (("head", 3.6), ("n1", 7.2)):
        record = {"prices": [[0, usd]]}
        folder.root.write(f"nodes/{node}.json", json.dumps(record).encode())
    target = drill.choose(folder.record(), drill.KILL_WORKER)
    receipt = drill.watch(folder, target, recovered(folder, clock), timeout_s=5, clock=clock)
    assert receipt.usd == pytest.approx(10.8 * 1.8 / 3600)
    assert receipt.node_seconds == pytest.approx(3.6)
    assert receipt.proven is None
    text = "\n".join(receipt.lines)
    assert "2 → 1 workers · 1 steps re-computed" in text
    assert "noticed 0.40 · parked 1.00" in text
    assert "$0.0054" in text


def test_without_prices_there_are_node_seconds_and_no_guess(folder, clock):
    target = drill.choose(folder.record(), drill.KILL_WORKER)
    receipt = drill.watch(folder, target, recovered(folder, clock), timeout_s=5, clock=clock)
    assert receipt.usd is None
    assert "no known price" in receipt.lines[-1]


def test_a_run_that_ends_or_hangs_is_told(folder, clock):
    target = drill.choose(folder.record(), drill.KILL_WORKER)
    with pytest.raises(RunError, match="has not stepped again"):
        drill.watch(folder, target, clock.now_s(), timeout_s=3, clock=clock)
    folder.update(step=70, accounted_s=clock.now_s() + 60)
    with pytest.raises(RunError, match="steps on, at step 70") as told:
        drill.watch(folder, target, clock.now_s(), timeout_s=3, clock=clock)
    assert "--wait" in told.value.fix
    folder.update(state="failed")
    with pytest.raises(RunError, match=r"ended \(failed\)"):
        drill.watch(folder, target, clock.now_s(), timeout_s=3, clock=clock)


def test_a_bill_counts_each_node_once_and_loses_its_dollars_at_an_unknown_price(tmp_path):
    root = open_root(str(tmp_path))
    root.write("nodes/a.json", json.dumps({"prices": [[0, 3.6]]}).encode())
    bill = Bill(Prices(root))
    bill.add(["a", "a"], 1000, 2000)
    assert bill.usd == pytest.approx(1.0)
    assert bill.node_hours == pytest.approx(1000 / 3600)
    bill.add(["a", "b"], 2000, 3000)
    assert bill.usd is None
    assert bill.node_hours == pytest.approx(3000 / 3600)
    assert Bill(Prices(root), 2.0, None).usd is None  # the drivers before had no price either


def test_what_was_told_to_go_is_killed_when_its_time_is_over(monkeypatch):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        monkeypatch.setenv("RAY_RAYLET_PID", str(sleeper.pid))
        drill._kill_at(WALL.now_s() + 0.5)  # returns at once
        assert sleeper.wait(60) == -signal.SIGKILL
    finally:
        sleeper.kill()
