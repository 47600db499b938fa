"""Trials that are distributed runs: several of two workers each, on a real Ray of four logical CPUs."""

from __future__ import annotations

import signal
import time

import pytest
import yaml
from test_runs_train import REPO, folder, root  # noqa: F401
from test_sweep_life import drive, finish, wait_for_reports

from sundog.runs import sweep_book
from sundog.storage.models import Registry
from sundog.storage.runs import RunFolder

pytestmark = pytest.mark.timeout(900)

MEETING = """
import os, time
from pathlib import Path

from jobs.recipes.digits import Digits

class Meeting(Digits):
    \"\"\"Evaluates when both trials have come so far: a population lives at one time.\"\"\"

    def metrics(self, outputs, batch):
        place = Path(os.environ["MEETING"])
        (place / str(self.lr)).touch()
        deadline = time.monotonic() + 40  # the other worker waits for this one, for a minute
        while len(list(place.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().metrics(outputs, batch)
"""


def spec(folder, name: str, run: dict | None = None, **changes) -> str:  # noqa: F811
    found = yaml.safe_load((REPO / "jobs/specs/digits-sweep.yaml").read_text())
    found["run"] |= {
        "steps": 60, "evaluate": "20 steps", "workers": 2, "micro_batch": 64,
        "checkpoint": {"every": 10}, **(run or {}),
    }  # fmt: skip
    found |= {
        "sweep": name, "register": None, "trials": 2, "concurrent": "auto", "scheduler": "fifo",
        **changes,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    return f"{name}.yaml"


def begin(local_ray, place, name: str):
    return drive(local_ray, place, name, f"{name.removesuffix('.yaml')}-1")


def swept(local_ray, place, name: str) -> str:
    code, text = finish(begin(local_ray, place, name))
    assert code == 0, text
    return text


@pytest.mark.slow
def test_trials_of_two_workers_find_what_one_worker_finds(local_ray, folder, root):  # noqa: F811
    money = {"usd_node_hour": 3.6, "max_usd": 5}
    registers = {"as": "grouped", "alias": "candidate"}
    text = swept(local_ray, folder, spec(folder, "wide", register=registers, **money))
    assert "2 at once on 2 workers each" in text
    run = RunFolder(root, "wide-1")
    wide = run.record()
    assert [t["state"] for t in wide["trials"]] == ["finished"] * 2
    # The same bits with one worker: how many there may be is how a batch is cut.
    alone = {"workers": "1..2", "resources": {"cpus": 2}}
    text = swept(local_ray, folder, spec(folder, "thin", alone, concurrent=2, **money))
    assert "2 at once" in text
    assert "workers each" not in text
    thin = RunFolder(root, "thin-1").record()
    for one, other in zip(wide["trials"], thin["trials"], strict=True):
        assert one["params"] == other["params"]
        assert one["metrics"] == other["metrics"]
    # Two workers of one CPU each are a half of four, for as long as the trial runs.
    for trial in wide["trials"]:
        assert trial["node_hours"] == pytest.approx(trial["seconds"] / 3600 * 0.5, rel=1e-2)
    assert wide["usd"] == pytest.approx(3.6 * wide["node_hours"], rel=1e-2)
    assert Registry(root).get(wide["model"]).lineage["trial"] == wide["best"]
    assert {"trial-000.0", "trial-000.1", "trial-001.0", "trial-001.1"} <= set(run.ranks())


@pytest.mark.long
def test_a_lost_worker_costs_its_trial_no_step(local_ray, folder, root):  # noqa: F811
    elastic = {"workers": "1..2", "steps": 300, "evaluate": "50 steps"}
    driver = begin(local_ray, folder, spec(folder, "torn", elastic, trials=1))
    wait_for_reports(root, "torn-1", 1)
    workers = [p for p in local_ray.processes() if "RayTrainWorker" in " ".join(p.cmdline())]
    assert len(workers) == 2, [p.cmdline()[:1] for p in local_ray.processes()]
    workers[1].send_signal(signal.SIGKILL)
    code, text = finish(driver)
    assert code == 0, text
    (trial,) = sweep_book.read(RunFolder(root, "torn-1")).trials.values()
    assert trial.state == "finished"
    assert [number for number, _ in trial.reports] == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_the_weak_copy_the_strong_on_two_workers(local_ray, folder, root, tmp_path):  # noqa: F811
    (folder / "meeting.py").write_text(MEETING)
    run = {"recipe": "meeting:Meeting", "env": {"MEETING": str(tmp_path)}, "steps": 120}
    changes = {
        "scheduler": {"pbt": {"every": 1, "mutate": ["lr"], "quantile": 0.5}},
        "space": {"lr": {"choice": [1e-6, 0.01]}}, "seed": 3,
    }  # fmt: skip
    swept(local_ray, folder, spec(folder, "herd", run, **changes))
    found = RunFolder(root, "herd-1")
    trials = sweep_book.read(found).trials.values()
    assert all(t.state == "finished" for t in trials)
    said = [line for t in trials for line in found.logs(f"{t.name}.0")]
    assert any("going on from step" in line for line in said)


@pytest.mark.long
def test_asha_ends_the_weak_and_their_workers(local_ray, folder, root):  # noqa: F811
    changes = {
        "trials": 4, "scheduler": {"asha": {"grace": 1, "eta": 2}},
        "space": {"lr": {"choice": [1e-6, 0.01]}}, "seed": 7,
    }  # fmt: skip
    swept(local_ray, folder, spec(folder, "cut", **changes))
    trials = RunFolder(root, "cut-1").record()["trials"]
    assert {t["state"] for t in trials} == {"finished", "stopped"}
    assert all(t["reports"] < 3 for t in trials if t["state"] == "stopped")

    def left() -> list[str]:
        names = [" ".join(p.cmdline()) for p in local_ray.processes()]
        return [n for n in names if "RayTrainWorker" in n or "ElasticController" in n]

    deadline = time.monotonic() + 60
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left() == []
