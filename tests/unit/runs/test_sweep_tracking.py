"""A sweep in a real MLflow store: the whole, a run for each trial, and the same ones when it goes on."""

import json

import pytest

from sundog.clock import ManualClock
from sundog.errors import RunError
from sundog.runs.sweep_book import Trial
from sundog.runs.sweep_tracking import tracking
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

mlflow = pytest.importorskip("mlflow")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    made = new_run(open_root(str(tmp_path)), "s", "s-1", clock=ManualClock(1_700_000_000.0))
    made.update(spec={"metric": "accuracy", "trials": 2})
    return made


def test_trials_are_runs_below_the_sweep_s(folder):
    one = Trial("trial-000", params={"lr": 0.1}, usd=0.02, node_hours=0.5)
    for step, state in ((10, "waiting"), (20, "finished")):  # cut short, then submitted again
        told = tracking(folder)
        assert told is not None
        told.reported(one, step, {"accuracy": step / 100})
        one.state, one.value, one.metrics = state, step / 100, {"accuracy": step / 100}
        told.ended(one)
        told.best(one, {"usd": 0.02, "node_hours": None})
        told.end("finished")
    client = mlflow.MlflowClient()
    whole = client.get_run(folder.record()["mlflow_run_id"])
    assert whole.info.status == "FINISHED"
    assert whole.data.params["metric"] == "accuracy"
    assert whole.data.metrics["best_accuracy"] == 0.2
    assert whole.data.tags["sundog.best"] == "trial-000"
    (child,) = [
        r for r in client.search_runs([whole.info.experiment_id])
        if r.data.tags.get("mlflow.parentRunId") == whole.info.run_id
    ]  # fmt: skip
    assert child.info.status == "FINISHED"
    assert child.data.params == {"lr": "0.1"}
    assert child.data.metrics["usd"] == 0.02
    history = client.get_metric_history(child.info.run_id, "accuracy")
    assert [(m.step, m.value) for m in history] == [(10, 0.1), (20, 0.2)]


def test_parameters_that_change_on_the_way_are_a_curve_and_the_best_ones_are_named(folder):
    one = Trial("trial-000", params={"lr": 0.1, "depth": 2})
    told = tracking(folder)
    assert told is not None
    told.reported(one, 10, {"accuracy": 0.5})
    one.params = {"lr": 0.12, "depth": 2}  # it copied another trial
    told.reported(one, 20, {"accuracy": 0.7})
    one.state = "finished"
    told.ended(one)
    told.end("finished")
    client = mlflow.MlflowClient()
    [child] = client.search_runs(
        [client.get_run(folder.record()["mlflow_run_id"]).info.experiment_id],
        "tags.`sundog.trial` = 'trial-000'",
    )
    assert child.data.params == {"lr": "0.1", "depth": "2"}
    rates = client.get_metric_history(child.info.run_id, "param.lr")
    assert [(m.step, m.value) for m in rates] == [(20, 0.12)]
    assert "param.depth" not in child.data.metrics
    assert json.loads(child.data.tags["sundog.params"]) == one.shown


def test_nobody_is_told_where_it_is_not_set_up(folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking(folder) is None


def test_a_server_that_is_not_there_is_found_before_any_trial(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match="does not answer"):
        tracking(folder)
