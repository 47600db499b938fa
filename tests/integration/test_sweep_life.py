"""A sweep that is killed, runs out of money or is asked nonsense: real Ray Tune, plain functions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sundog.runs import sweep_book
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder

pytestmark = pytest.mark.timeout(900)

TRIALS = '''
import sys, time

def climb(params, report):
    """Six reports that rise towards x; what it has done is in its state."""
    done = int(report.state or 0)
    print(f"begins after {done} reports")
    for number in range(done, 6):
        time.sleep(params.get("pace", 0.1))
        value = params["x"] * (1 - 0.5 ** (number + 1))
        report({"score": value, "size": params["x"] ** 2}, state=str(number + 1).encode())

def fragile(params, report):
    if params["x"] > 0.2:
        raise ValueError("x is too large for me")
    report({"score": params["x"]})
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("sweeps")
    (place / "trials.py").write_text(TRIALS)
    return place


@pytest.fixture(scope="module")
def root(local_ray):
    return open_root(local_ray.endpoints.root)


def write(folder: Path, name: str, **changes) -> str:
    spec = {
        "sweep": name, "metric": "score", "trials": 6, "concurrent": 2, "seed": 3,
        "run": {"run": "climb", "recipe": "trials:climb", "steps": 6},
        "space": {"x": {"uniform": [0.0, 1.0]}},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec | changes, sort_keys=False))
    return f"{name}.yaml"


def drive(local_ray, folder: Path, spec: str, run_id: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sundog", "sweep", spec, "--run-id", run_id],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # As inside a job of this Ray, and of no other that may run on this machine.
        env=local_ray.environment()
        | {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": local_ray.endpoints.gcs},
    )  # fmt: skip


def finish(driver: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        text, _ = driver.communicate(timeout=240)
    finally:
        driver.kill()
    return driver.returncode, text


def sweep(local_ray, folder: Path, spec: str, run_id: str) -> tuple[int, str]:
    return finish(drive(local_ray, folder, spec, run_id))


def wait_for_reports(root, run_id: str, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        told = [e for e in sweep_book.entries(RunFolder(root, run_id)) if e["what"] == "report"]
        if len(told) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{run_id} never had {count} reports")


def values(book) -> dict[str, tuple[dict, float | None]]:
    return {name: (t.params, t.value) for name, t in book.trials.items()}


def test_a_killed_sweep_goes_on_where_it_was(local_ray, folder, root):
    spec = write(folder, "killed", max_usd=5, usd_node_hour=3.6)
    driver = drive(local_ray, folder, spec, "killed-1")
    wait_for_reports(root, "killed-1", 15)
    driver.send_signal(signal.SIGKILL)
    finish(driver)
    run = RunFolder(root, "killed-1")
    before = sweep_book.read(run)
    ended = {name for name, t in before.trials.items() if t.ended}
    cut = [t for t in before.trials.values() if not t.ended and t.reports]
    assert ended
    assert cut
    assert (before.usd or 0) > 0

    other = write(folder, "other", sweep="killed", space={"x": {"uniform": [0.0, 2.0]}})
    code, text = sweep(local_ray, folder, other, "killed-1")
    assert code != 0
    assert "space.x" in text
    assert "another search" in text

    code, text = sweep(local_ray, folder, spec, "killed-1")
    assert code == 0, text
    assert "going on" in text
    after = sweep_book.read(run)
    assert len(after.trials) == 6
    assert all(t.state == "finished" for t in after.trials.values())
    assert all(after.trials[n].params == t.params for n, t in before.trials.items())
    for trial in after.trials.values():
        assert [n for n, _ in trial.reports] == [1, 2, 3, 4, 5, 6]  # none lost, none twice
    assert (after.usd or 0) > (before.usd or 0)
    # What had ended was not begun again; what was cut went on from its state.
    for name in ended:
        assert sum("begins" in line for line in run.logs(name)) == 1
    assert any("begins after 0" not in line for t in cut for line in run.logs(t.name)
               if "begins" in line)  # fmt: skip

    code, text = sweep(local_ray, folder, spec, "killed-1")
    assert code == 0
    assert "finished already" in text


@pytest.mark.slow
def test_a_budget_ends_it_and_a_larger_one_goes_on(local_ray, folder, root):
    # A trial takes 3 s or more on a part of a node: at $360 an hour the money ends among them, and
    # well after the first report however busy the machine.
    space = {"x": {"uniform": [0.0, 1.0]}, "pace": {"choice": [0.5]}}
    money = {"usd_node_hour": 360, "trials": 8, "space": space}
    spec = write(folder, "budget", max_usd=0.3, **money)
    code, text = sweep(local_ray, folder, spec, "budget-1")
    assert code == 0, text
    record = RunFolder(root, "budget-1").record()
    assert record["state"] == "finished"
    assert "budget" in record["ended_by"]
    assert record["best"]
    first_report_usd = max((t["usd"] or 0) / max(t["reports"], 1) for t in record["trials"])
    assert 0 < record["usd"] <= 0.3 + 2 * first_report_usd  # two at once
    assert any(t["state"] == "waiting" for t in record["trials"])

    spec = write(folder, "budget", max_usd=50, **money)
    code, text = sweep(local_ray, folder, spec, "budget-1")
    assert code == 0, text
    again = RunFolder(root, "budget-1").record()
    assert again["ended_by"] is None
    assert [t["state"] for t in again["trials"]] == ["finished"] * 8
    assert again["usd"] > record["usd"]


def test_a_trial_that_always_crashes_ends_the_sweep_with_its_reason(local_ray, folder, root):
    spec = write(
        folder, "crash", max_failed=3, trials=30,
        run={"run": "climb", "recipe": "trials:fragile", "steps": 1},
    )  # fmt: skip
    code, text = sweep(local_ray, folder, spec, "crash-1")
    assert code == 1
    assert "x is too large for me (trials.py" in text
    assert "Traceback" not in text
    record = RunFolder(root, "crash-1").record()
    assert record["state"] == "failed"
    assert 3 <= sum(t["state"] == "failed" for t in record["trials"]) <= 4
    assert len(record["trials"]) < 30


SLOW = {"x": {"uniform": [0.0, 1.0]}, "pace": {"choice": [20]}}
"""The cap is reached long before the first report."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metric": "scroe"}, "no 'scroe', only score, size"),
        ({"max_usd": 1}, "usd_node_hour"),
        ({"max_usd": 1e-7, "usd_node_hour": 36, "space": SLOW}, "raise the cap"),
        ({"register": {"as": "m"}}, "plain function"),
        ({"run": {"run": "r", "recipe": "trials:nix", "steps": 1}}, "has no 'nix'"),
        ({"warm_start": ["nix-1"], "searcher": "optuna"}, "nix-1"),
    ],
)
def test_what_cannot_work_says_so(local_ray, folder, root, changes, says):
    spec = write(folder, "wrong", **changes)
    code, text = sweep(local_ray, folder, spec, f"wrong-{abs(hash(says)) % 1000}")
    assert code != 0
    assert says in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"scheduler": {"asha": {"grace": 1, "eta": 2}}},
            id="asha",
            marks=pytest.mark.slow,
        ),
        pytest.param({"scheduler": "halving"}, id="halving", marks=pytest.mark.slow),
        pytest.param(
            {"scheduler": {"hyperband": {"eta": 2}}}, id="hyperband", marks=pytest.mark.long
        ),
        pytest.param(
            {"scheduler": {"median": {"grace": 1, "least": 1}}}, id="median", marks=pytest.mark.long
        ),
        pytest.param(
            {"searcher": {"optuna": {"startup": 2, "multivariate": True}}, "also": {"size": "min"}},
            id="front",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "searcher": {"optuna": {"startup": 2, "sampler": "gp"}},
                "scheduler": {"asha": {"brackets": 2}},
            },
            id="gp",
            marks=pytest.mark.long,
        ),
        pytest.param({"repeats": 2, "trials": 3}, id="repeats", marks=pytest.mark.long),
        pytest.param(
            {"searcher": "grid", "space": {"x": {"choice": [0.1, 0.5, 0.9]}}},
            id="grid",
            marks=pytest.mark.long,
        ),
    ],
)
def test_every_choice_runs_to_its_end(local_ray, folder, root, changes, request):
    name = request.node.callspec.id
    code, text = sweep(local_ray, folder, write(folder, name, **changes), f"{name}-1")
    assert code == 0, text
    record = RunFolder(root, f"{name}-1").record()
    trials = record["trials"]
    assert {t["state"] for t in trials} <= {"finished", "stopped"}
    best = max(t["value"] for t in trials)
    assert any(t["trial"] == record["best"] and t["value"] == best for t in trials)
    if name in ("asha", "halving", "median"):
        assert any(t["state"] == "stopped" and t["why"] for t in trials), text
    if name == "front":
        assert set(record["front"]) <= {t["trial"] for t in trials}
        assert record["best"] in record["front"]


@pytest.mark.slow
def test_a_population_copies_real_checkpoints(local_ray, folder, root):
    changes = {
        "scheduler": {"pbt": {"every": 1, "mutate": ["pace"], "quantile": 0.5}},
        "space": {"x": {"uniform": [0.0, 1.0]}, "pace": {"uniform": [0.05, 0.1]}},
        "trials": 4, "concurrent": 4,
    }  # fmt: skip
    code, text = sweep(local_ray, folder, write(folder, "pbt", **changes), "pbt-1")
    assert code == 0, text
    run = RunFolder(root, "pbt-1")
    trials = sweep_book.read(run).trials.values()
    assert all(t.state == "finished" for t in trials)
    # A copied trial has the other's x, and began from the other's state.
    assert len({t.params["x"] for t in trials}) < 4
    began = [line for t in trials for line in run.logs(t.name) if "begins after" in line]
    assert any("begins after 0" not in line for line in began)


@pytest.mark.slow
def test_a_lost_process_costs_a_trial_nothing_but_time(local_ray, folder, root):
    spec = write(
        folder, "lost", trials=2, space={"x": {"uniform": [0.0, 1.0]}, "pace": {"choice": [0.5]}}
    )
    driver = drive(local_ray, folder, spec, "lost-1")
    wait_for_reports(root, "lost-1", 3)
    trials = [p for p in local_ray.processes() if "ImplicitFunc" in " ".join(p.cmdline())]
    assert trials, [p.cmdline()[:2] for p in local_ray.processes()]
    trials[0].send_signal(signal.SIGKILL)
    code, text = finish(driver)
    assert code == 0, text
    run = RunFolder(root, "lost-1")
    found = sweep_book.read(run).trials.values()
    assert [t.state for t in found] == ["finished"] * 2
    assert all([n for n, _ in t.reports] == [1, 2, 3, 4, 5, 6] for t in found)
    began = [line for t in found for line in run.logs(t.name) if "begins after" in line]
    # A killed process takes its last second of prints with it.
    assert sum("begins after 0" not in line for line in began) == 1


@pytest.mark.slow
def test_halving_goes_on_after_a_kill_with_what_was_paused(local_ray, folder, root):
    # The best comes first, so that each later one is paused early, and stays so until all had a go.
    falling = [round(0.9 - 0.1 * n, 1) for n in range(8)]
    spec = write(
        folder, "halved", scheduler="halving", trials=8, searcher="grid",
        space={"x": {"choice": falling}, "pace": {"choice": [0.3]}},
    )  # fmt: skip
    driver = drive(local_ray, folder, spec, "halved-1")
    run = RunFolder(root, "halved-1")

    def paused() -> bool:
        return any(t.state == "paused" for t in sweep_book.read(run).trials.values())

    deadline = time.monotonic() + 120
    while not paused() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    _, text = finish(driver)
    assert paused(), text
    code, text = sweep(local_ray, folder, spec, "halved-1")
    assert code == 0, text
    trials = sweep_book.read(run).trials.values()
    assert len(trials) == 8
    assert all(t.ended for t in trials)
    best = max(trials, key=lambda t: t.params["x"])
    assert best.state == "finished"  # curves here never cross: the best x is the best trial


@pytest.mark.long
def test_an_earlier_sweep_warms_a_model(local_ray, folder, root):
    first = write(folder, "first", trials=5)
    assert sweep(local_ray, folder, first, "first-1")[0] == 0
    second = write(
        folder, "second", trials=2, searcher={"optuna": {"startup": 1}}, warm_start=["first-1"]
    )
    code, text = sweep(local_ray, folder, second, "second-1")
    assert code == 0, text
    assert "learnt from 5 of 5 trials of first-1" in text


@pytest.mark.slow
def test_show_plot_export(local_ray, folder, root, tmp_path, monkeypatch):
    from sundog.cli import app

    changes = {
        "also": {"size": "min"}, "trials": 8, "scheduler": "asha", "max_usd": 5,
        "usd_node_hour": 3.6, "space": {"x": {"uniform": [0.0, 1.0]}, "pace": {"choice": [0.01, 0.02]}},
    }  # fmt: skip
    assert sweep(local_ray, folder, write(folder, "seen", **changes), "seen-1")[0] == 0
    monkeypatch.setenv("SUNDOG_ROOT", local_ray.endpoints.root)
    shown = CliRunner().invoke(app, ["sweep", "show", "seen-1"])
    assert shown.exit_code == 0, shown.output
    assert "front of score, size" in shown.output
    assert "not in the best 1/3" in shown.output
    assert "$" in shown.output
    drawn = CliRunner().invoke(app, ["sweep", "plot", "seen-1", "-o", str(tmp_path)])
    assert drawn.exit_code == 0, drawn.output
    for name in ("parallel", "spend", "importance", "front"):
        assert (tmp_path / f"{name}.svg").stat().st_size > 5000, drawn.output
    for name in ("t.csv", "t.parquet"):
        done = CliRunner().invoke(app, ["sweep", "export", "seen-1", "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    wrong = CliRunner().invoke(app, ["sweep", "export", "seen-1", "-o", str(tmp_path / "t.xls")])
    assert wrong.exit_code != 0


def test_a_spec_right_after_sweep_is_submitted(tmp_path, monkeypatch):
    from sundog.cli import app
    from sundog.errors import SpecError

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    answer = CliRunner().invoke(app, ["sweep", "nowhere.yaml"])
    assert isinstance(answer.exception, SpecError)
    assert "nowhere.yaml" in str(answer.exception)
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.long
def test_it_runs_in_its_hours_only(local_ray, folder, root, request):
    """Two windows with a minute between them: the first ends while trials run."""
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC).replace(second=0, microsecond=0)
    first = [now - timedelta(minutes=1), now + timedelta(minutes=3)]
    second = [now + timedelta(minutes=4), now + timedelta(minutes=40)]
    hours = [dict(zip(("from", "to"), (f"{t:%H:%M}" for t in w), strict=True))
             for w in (first, second)]  # fmt: skip
    spec = write(
        folder, "nightly", hours=hours, trials=16, usd_node_hour=3.6, max_usd=9,
        space={"x": {"uniform": [0.0, 1.0]}, "pace": {"choice": [4]}},
    )  # fmt: skip
    driver = drive(local_ray, folder, spec, "nightly-1")
    request.addfinalizer(driver.kill)
    run = RunFolder(root, "nightly-1")

    def paused() -> bool:
        return root.exists(run.key("record.json")) and bool(run.record().get("paused_until_s"))

    def trials() -> bool:
        return any("ImplicitFunc" in " ".join(p.cmdline()) for p in local_ray.processes())

    deadline = time.monotonic() + 300
    while not paused() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    assert paused()
    while paused() and trials():
        time.sleep(0.5)
    assert paused(), "its trials ran on"
    book = sweep_book.read(run)
    assert {t.state for t in book.trials.values()} <= {"waiting", "finished"}
    assert any(t.reports and not t.ended for t in book.trials.values())
    code, text = finish(driver)
    assert code == 0, text
    assert "outside its hours: paused until" in text
    assert "its hours have begun" in text
    after = sweep_book.read(run)
    assert all(t.state == "finished" for t in after.trials.values())
    assert all([n for n, _ in t.reports] == [1, 2, 3, 4, 5, 6] for t in after.trials.values())
    record = run.record()
    assert after.elapsed_s <= record["ended_s"] - record["started_s"] - 45  # nor was it charged
