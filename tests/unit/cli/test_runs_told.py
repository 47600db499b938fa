"""What `sundog runs show`, `plot` and `drill` say of a run, from its record alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from sundog.cli import main
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder, new_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUNDOG_ROOT", (tmp_path / "root").as_uri())
    folder = new_run(open_root((tmp_path / "root").as_uri()), "gpt")
    folder.update(
        state="running", started_s=1.0, step=100, steps=400, workers=2, tokens_s=41_200.0,
        samples_s=80.0, eta_s=90.0, goodput=0.941, losses={"startup": 0.04, "idle": 0.0},
        node_hours=2.0, usd=3.0, placed=[{"node_id": n, "host": "h", "pid": 1} for n in "ab"],
    )  # fmt: skip
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_a_live_run_says_its_speed_its_goodput_and_what_it_will_cost(folder, capsys):
    code, out, _ = run(capsys, "runs", "show", "gpt-1")
    assert code == 0
    assert "41,200 tokens/s · 1 min 30 s to go" in out
    assert "94.1% · startup 4.0" in out
    assert "idle" not in out
    # Two nodes at $1.50 an hour for another 90 s.
    assert "$3.00, 2.00 node-hours so far, about $3.08 in all" in out


def test_without_prices_there_are_node_hours(folder, capsys):
    folder.update(usd=None)
    assert "2.000 node-hours (its nodes have no price)" in run(capsys, "runs", "show", "gpt-1")[1]


def test_a_drill_needs_the_run_s_own_ray_and_one_fault(folder, capsys):
    code, _, err = run(capsys, "drill", "run", "gpt-1", "--yes")
    assert code == 1
    assert "no Ray of it runs on this machine" in err
    assert "ray job submit" in err
    code, _, err = run(capsys, "drill", "run", "gpt-1", "--notice", "--kill-node")
    assert code == 2
    assert "one fault at a time" in err


def test_a_run_without_steps_has_no_picture(folder, capsys):
    code, _, err = run(capsys, "runs", "plot", "gpt-1")
    assert code == 1
    assert "no curve to draw" in err
