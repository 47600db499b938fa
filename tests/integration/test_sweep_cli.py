"""A sweep as its user sees it: on S3, with MLflow, from show to the promoted model."""

from __future__ import annotations

import csv
import json
import subprocess

import pyarrow.parquet
import pytest
import s3server
import yaml
from test_runs_train import BIN, REPO, folder, submit  # noqa: F401
from test_sweep_life import wait_for_reports

from sundog.runs import sweep_book
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    """The environment of a user whose root is on S3, and who has an MLflow."""
    with s3server.s3_server() as endpoint:
        yield {
            **s3server.CREDENTIALS,
            "AWS_ENDPOINT_URL": endpoint,
            "SUNDOG_ROOT": f"s3://{s3server.make_bucket(endpoint)}/p",
            "MLFLOW_TRACKING_URI": tmp_path_factory.mktemp("mlruns").as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",
        }


@pytest.fixture(scope="module")
def swept(local_ray, folder, away) -> str:  # noqa: F811
    spec = yaml.safe_load((REPO / "jobs/specs/digits-sweep.yaml").read_text())
    spec["run"] |= {"steps": 60, "evaluate": "20 steps"}
    spec |= {
        "register": None, "trials": 4, "scheduler": {"asha": {"grace": 1, "eta": 2}},
        "also": {"usd": "min"}, "usd_node_hour": 1.0, "max_usd": 1,
    }  # fmt: skip
    (folder / "away.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    environment = ["--runtime-env-json", json.dumps({"env_vars": away})]
    for entry in ("jobs/ingest.py", "jobs/sweep.py away.yaml --run-id away-1"):
        code, text = submit(local_ray, folder, f"python {entry}", *environment)
        assert code == 0, text
    return "away-1"


@pytest.fixture
def sundog(local_ray, folder, away):  # noqa: F811
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "sundog", "sweep", *arguments], cwd=folder, capture_output=True, text=True,
            env=local_ray.environment() | away, timeout=300, check=False,
        )  # fmt: skip

    return call


def test_show_plot_and_export_say_the_same(swept, sundog, tmp_path):
    shown = sundog("show", swept, "--watch")  # it has ended: shown once
    assert shown.returncode == 0, shown.stderr
    assert "front of accuracy, usd" in shown.stdout
    assert "of $1" in shown.stdout
    found = json.loads(sundog("show", swept, "--json").stdout)
    assert [t["trial"] for t in found["trials"]] == [f"trial-00{n}" for n in range(4)]
    for options in ((), ("--png",)):
        drawn = sundog("plot", swept, "-o", str(tmp_path), *options)
        assert drawn.returncode == 0, drawn.stderr
    for name in ("parallel", "spend", "front"):
        assert (tmp_path / f"{name}.svg").stat().st_size > 5000
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    for name in ("t.csv", "t.parquet"):
        assert sundog("export", swept, "-o", str(tmp_path / name)).returncode == 0
    rows = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert {r["trial"]: r["accuracy"] for r in rows} == {
        t["trial"]: t["value"] for t in found["trials"]
    }
    with (tmp_path / "t.csv").open() as text:
        assert [r["lr"] for r in csv.DictReader(text)] == [str(r["lr"]) for r in rows]


def test_the_winner_is_promoted_once(swept, sundog, away, monkeypatch):
    told = json.loads(sundog("show", swept, "--json").stdout)
    wrong = sundog("promote", swept, "--trial", "trial-9", "--as", "kept")
    assert wrong.returncode != 0
    assert "has no trial 'trial-9'" in wrong.stderr + wrong.stdout
    refs = set()
    for _ in range(2):
        done = sundog("promote", swept, "--as", "kept", "--alias", "champion", "--json")
        assert done.returncode == 0, done.stderr
        refs.add(json.loads(done.stdout)["model"])
    assert refs == {"kept@1"}
    for name, value in away.items():
        monkeypatch.setenv(name, value)
    version = Registry(open_root(away["SUNDOG_ROOT"])).get("kept@champion")
    assert version.lineage["run"] == swept
    assert version.lineage["trial"] == told["best"]
    assert version.lineage["data"] == "digits@1"
    assert version.metrics["accuracy"] == told["metrics"]["accuracy"]


def test_mlflow_has_the_sweep_and_its_trials(swept, sundog, away, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    told = json.loads(sundog("show", swept, "--json").stdout)
    client = mlflow.MlflowClient(away["MLFLOW_TRACKING_URI"])
    whole = client.get_run(told["mlflow_run_id"])
    assert whole.info.status == "FINISHED"
    assert whole.data.metrics["best_accuracy"] == told["metrics"]["accuracy"]
    runs = client.search_runs([whole.info.experiment_id])
    trials = {r.data.tags["sundog.trial"]: r for r in runs if "sundog.trial" in r.data.tags}
    assert sorted(trials) == [t["trial"] for t in told["trials"]]
    for trial in told["trials"]:
        run = trials[trial["trial"]]
        assert run.data.tags["mlflow.parentRunId"] == whole.info.run_id
        assert run.data.params["lr"] == str(trial["params"]["lr"])
        history = client.get_metric_history(run.info.run_id, "accuracy")
        assert len(history) == trial["reports"]
        assert max(m.value for m in history) == trial["value"]


def test_what_is_no_sweep_is_named(sundog):
    missing = sundog("show", "nothing-1")
    assert missing.returncode != 0
    assert "nothing-1" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_a_pause_by_hand_goes_on_with_the_same_trials(local_ray, folder, away, monkeypatch):  # noqa: F811
    """`sundog runs cancel`, then the same id again: on S3, whose journal gathers its lines."""
    (folder / "climbs.py").write_text(
        "import time\n"
        "def climb(params, report):\n"
        "    for number in range(int(report.state or 0), 8):\n"
        "        time.sleep(1)\n"
        "        report({'score': params['x'] * number}, state=str(number + 1).encode())\n"
    )
    spec = {
        "sweep": "byhand", "metric": "score", "trials": 4, "concurrent": 2, "max_usd": 1,
        "usd_node_hour": 1, "run": {"run": "climb", "recipe": "climbs:climb", "steps": 8},
        "space": {"x": {"uniform": [0.0, 1.0]}},
    }  # fmt: skip
    (folder / "byhand.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    for name, value in away.items():
        monkeypatch.setenv(name, value)
    run = RunFolder(open_root(away["SUNDOG_ROOT"]), "byhand-1")
    more = ["--runtime-env-json", json.dumps({"env_vars": away})]
    entry = "python jobs/sweep.py byhand.yaml --run-id byhand-1"
    code, text = submit(local_ray, folder, entry, "--no-wait", *more)
    assert code == 0, text
    wait_for_reports(run.root, "byhand-1", 5)
    paused = subprocess.run(
        [BIN / "sundog", "runs", "cancel", "byhand-1", "--yes"], cwd=folder, capture_output=True,
        text=True, env=local_ray.environment() | away, timeout=300, check=False,
    )  # fmt: skip
    assert paused.returncode == 0, paused.stderr
    assert run.record()["state"] == "cancelled"
    before = sweep_book.read(run)
    assert (before.usd or 0) > 0
    code, text = submit(local_ray, folder, entry, *more)
    assert code == 0, text
    assert "going on" in text
    after = sweep_book.read(run)
    assert [t.state for t in after.trials.values()] == ["finished"] * 4
    assert all(after.trials[n].params == t.params for n, t in before.trials.items())
    assert all([n for n, _ in t.reports] == list(range(1, 9)) for t in after.trials.values())
    assert (after.usd or 0) > (before.usd or 0)
