"""Drills of whole nodes on a Ray of several: a notice, and kill -9 of a raylet, with their receipts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from several_nodes import run_alone
from test_runs_nodes import RECIPE, Scene

# The same faults as in test_runs_nodes, which .ci/run has.
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]


def test_a_node_s_drill_has_its_receipt(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(RECIPE)
    run_alone(__file__, str(tmp_path), limit_s=400)


def test_a_run_that_needs_the_node_stays_on_it_until_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(RECIPE)
    run_alone(__file__, "fixed", str(tmp_path), limit_s=400)


def fixed(scene: Scene) -> None:
    from test_runs_nodes import alive

    from sundog.clock import WALL
    from sundog.runs import drill

    scene.node()
    scene.node()
    scene.start(workers=2, checkpoint={"every": 40, "keep": 2})
    scene.working(2)
    target = drill.choose(scene.record(), drill.NOTICE)
    since_s = WALL.now_s()
    drill.strike(target, notice_s=8)
    scene.working(2)  # nothing else is there to go to
    scene.until(lambda: target.node_id not in alive())
    scene.node()
    receipt = drill.watch(scene.run, target, since_s, timeout_s=120)
    assert (receipt.event, receipt.workers) == ("run.recovered", (2, 2))
    assert (receipt.lost, receipt.duplicated) == (0, 0)


def drills(scene: Scene) -> None:
    from sundog.clock import WALL
    from sundog.runs import drill

    scene.node()
    scene.node()
    scene.start(checkpoint={"every": 40, "keep": 2})
    scene.working(2)
    for fault, event in ((drill.NOTICE, "run.drained"), (drill.KILL_NODE, "run.recovered")):
        target = drill.choose(scene.record(), fault)
        since_s = WALL.now_s()
        drill.strike(target, notice_s=20)
        receipt = drill.watch(scene.run, target, since_s, timeout_s=120)
        print("\n".join(receipt.lines), receipt.data)
        assert receipt.event == event
        assert receipt.workers == (2, 1)
        assert (receipt.lost, receipt.duplicated) == (0, 0)
        assert receipt.proven
        assert receipt.steps_back <= (0 if fault == drill.NOTICE else 1)
        scene.node()
        scene.working(2)


if __name__ == "__main__":
    scene = Scene(Path(sys.argv[-1]))
    try:
        (fixed if sys.argv[1] == "fixed" else drills)(scene)
    finally:
        scene.close()
