"""The replay of preemption events: both formats, and that it counts what it says."""

from __future__ import annotations

import json

import goodput as bench
import pytest

BAMBOO = "0,add,a\n0,add,b\n600000,remove,a\n1200000,add,c\n3600000,remove,b\n"
PARCAE = (
    '[0, "add", {"nodes": ["a", "b"], "duration": 60000}]\n'
    '[60000, "no-op", {"nodes": [], "duration": 60000}]\n'
    '[120000, "remove", {"nodes": ["a"], "duration": 60000}]\n'
)


def test_both_formats_are_read(tmp_path):
    (tmp_path / "b.csv").write_text(BAMBOO)
    (tmp_path / "p.txt").write_text(PARCAE)
    bamboo, parcae = bench.read_events(tmp_path / "b.csv"), bench.read_events(tmp_path / "p.txt")
    assert [(c.at_s, len(c.added), len(c.removed)) for c in bamboo] == [
        (0, 2, 0), (600, 0, 1), (1200, 1, 0), (3600, 0, 1)
    ]  # fmt: skip
    assert [c.at_s for c in parcae] == [0, 60, 120]
    assert parcae[2].removed == ("a",)


def test_a_line_that_is_neither_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("0,add,a\n1,lost,b\n")
    with pytest.raises(ValueError, match=r"x.csv:2: neither"):
        bench.read_events(tmp_path / "x.csv")


def test_costs_that_are_nothing_leave_only_the_start(tmp_path):
    from dataclasses import replace

    free = replace(
        bench.SUNDOG, startup_s=0, shrink_s=0, grow_s=0, cold_s=0, checkpoint_s=0, step_s=0
    )
    (tmp_path / "b.csv").write_text(BAMBOO)
    found = bench.measure(tmp_path / "b.csv", 32, [free])
    assert found["policies"]["sundog"]["goodput"] == 1.0
    assert found["policies"]["sundog"]["node_hours"] == pytest.approx(
        (600 + 3600 + 2400) / 3600, abs=0.01
    )


def test_survivors_with_state_beat_restarts(tmp_path):
    lines = [f"0,add,n{i}" for i in range(8)]
    lines += [f"{600_000 * (i + 1)},remove,n{i}" for i in range(6)]
    (tmp_path / "b.csv").write_text("\n".join([*lines, "4800000,remove,n7"]))
    found = bench.measure(tmp_path / "b.csv", 32, bench.policies_of(None))["policies"]
    assert found["sundog"]["goodput"] > found["restart 60 s, Young/Daly"]["goodput"] + 0.05
    # One loss by hand: each of six losses stops the others for 3 s and undoes a second of work.
    left = sum(7 - i for i in range(6))
    available = found["sundog"]["node_hours"] * 3600
    assert found["sundog"]["losses"]["restart"] == pytest.approx(
        (8 * 10 + left * 3) / available, rel=0.05
    )


def test_stage_costs_come_from_what_recovery_measured(tmp_path):
    stages = {
        "raylet": {"fault_to_step_s": {"median": 2.5}, "pause_to_grow_s": {"median": 0.5}},
        "notice": {"pause_s": {"median": 0.7}},
        "driver": {"fault_to_step_s": {"median": 9.0}},
    }
    file = tmp_path / "recovery.json"
    file.write_text(json.dumps({"policies": {"sundog": stages}}))
    plain, noticed, slow, *_ = bench.policies_of(file)
    assert (plain.shrink_s, plain.grow_s, plain.cold_s) == (2.5, 0.5, 9.0)
    assert (noticed.notice, noticed.shrink_s) == (True, 0.7)
    assert (slow.startup_s, slow.cold_s) == (60.0, 69.0)
    file.write_text(json.dumps({"policies": {"sundog": {}}}))
    with pytest.raises(SystemExit, match="with raylet, driver"):
        bench.policies_of(file)
