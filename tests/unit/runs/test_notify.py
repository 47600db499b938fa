"""Whoever is told of a run: a real HTTP hook, a real MLflow store."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from sundog.clock import ManualClock
from sundog.errors import RunBusy, RunError
from sundog.runs.notify import notified
from sundog.runs.observers import MlFlow
from sundog.storage.root import open_root
from sundog.storage.runs import new_run


class Hook(http.server.BaseHTTPRequestHandler):
    got: list[dict] = []
    refuse = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code = 503 if Hook.refuse > 0 else 200
        Hook.refuse -= 1
        if code == 200:
            Hook.got.append(json.loads(body))
        self.send_response(code)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hook():
    Hook.got, Hook.refuse = [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret"
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    return new_run(open_root(str(tmp_path)), "r", "r-1", clock=ManualClock(1_700_000_000.0))


def test_the_hook_hears_of_the_end_and_of_a_failure(hook, folder, monkeypatch):
    monkeypatch.setenv("HOOK", hook)
    with notified(folder, "env:HOOK"):
        folder.update(state="finished", step=40, metrics={"accuracy": 0.9}, model="r@1")
    folder.update(state="failed", message="the loss became nan")
    with pytest.raises(RunError), notified(folder, hook):
        raise RunError("the loss became nan")
    assert [m["event"] for m in Hook.got] == ["run.finished", "run.failed"]
    assert Hook.got[0]["metrics"] == {"accuracy": 0.9}
    assert Hook.got[0]["model"] == "r@1"
    assert "the loss became nan" in Hook.got[1]["text"]


def test_a_hook_that_fails_is_tried_again_and_never_costs_the_run(hook, folder):
    clock = ManualClock(0.0)
    Hook.refuse = 2
    with notified(folder, hook, clock):
        folder.update(state="finished")
    assert len(Hook.got) == 1
    Hook.refuse = 9
    with notified(folder, hook, clock):
        pass
    said = "".join(folder.logs("driver"))
    assert "it answered 503" in said
    assert "secret" not in said


def test_a_run_that_goes_on_elsewhere_is_no_end(hook, folder):
    folder.update(state="finished")
    with pytest.raises(RunBusy), notified(folder, hook):
        raise RunBusy("driven by another")
    with notified(folder, hook):
        folder.update(state="running")
    assert Hook.got == []


def test_mlflow_has_the_curve_the_parameters_and_the_end(folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder.update(spec={"batch": 64, "params": {"lr": 0.1}, "env": {"KEY": "x"}})
    point = {"step": 10, "loss": 0.5, "samples_s": 9.0, "workers": 2, "goodput": 0.9, "usd": None}
    for step in (10, 20):
        seen = MlFlow(folder)  # the second is a driver that resumes
        thread = threading.Thread(
            target=seen.point, args=(point | {"step": step, "metrics": {"accuracy": step / 100}},)
        )
        thread.start()  # the driver's watcher is another thread than the main one
        thread.join()
        seen.end("finished")
    client = mlflow.MlflowClient()
    run = client.get_run(folder.record()["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["params.lr"] == "0.1"
    assert not any("KEY" in name for name in run.data.params)
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert [(m.step, m.value) for m in history] == [(10, 0.1), (20, 0.2)]
