"""One trial without Tune: it goes on from its checkpoint, or from another's, and says what failed."""

import json
from pathlib import Path

import pytest
import torch
from ray import tune
from test_sweep_space import spec
from toy import Toy

from sundog.runs import trial as trials
from sundog.runs.trial import run_trial
from sundog.runs.trial_kept import Kept, trial_prefix
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

HERE = Path(__file__).parent
RUN = {"run": "r", "recipe": "test_trial:Rated", "steps": 12, "batch": 8, "evaluate": "3 steps",
       "checkpoint": {"every": 5}}  # fmt: skip


class Rated(Toy):
    def __init__(self, data=None, lr=0.01):
        super().__init__(data)
        self.lr = lr

    def optimizer(self, params):
        return torch.optim.SGD(params, lr=self.lr, momentum=0.9)


class Told:
    """What Tune would do: collects reports, hands out a checkpoint, ends a trial in the middle."""

    def __init__(self, monkeypatch, name="trial-000", end_after=None, mark=None, folder=None):
        self.results, self.marks = [], []
        self._end_after = end_after
        context = type("Context", (), {"get_trial_id": lambda self: name})()
        monkeypatch.setattr(tune, "get_context", lambda: context)
        monkeypatch.setattr(tune, "report", self.report)
        monkeypatch.setattr(trials, "_node", lambda: "n1")
        kept = None
        if mark is not None:
            (folder / "where.json").write_text(json.dumps(mark))
            kept = tune.Checkpoint.from_directory(str(folder))
        monkeypatch.setattr(tune, "get_checkpoint", lambda: kept)

    def report(self, result, checkpoint=None):
        self.results.append(result)
        if checkpoint is not None:
            self.marks.append(json.loads((Path(checkpoint.path) / "where.json").read_text()))
        if len(self.results) == self._end_after:
            raise SystemExit(0)

    def values(self, metric):
        return {r["report"]: r[metric] for r in self.results}


@pytest.fixture
def run(tmp_path):
    return new_run(open_root(tmp_path.as_uri()), "s", "s-1")


def job(run, one):
    return {
        "sweep": one.model_dump(mode="json"), "folder": run, "data": None,
        "directory": str(HERE), "environment": {}, "repeats": {}, "reported": {}, "workers": 1,
        "init_from": None,
    }  # fmt: skip


def sweep(**changes):
    return spec(**{"run": RUN, "space": {"lr": {"log": [1e-3, 1.0]}}, "metric": "val_loss",
                   "mode": "min"} | changes)  # fmt: skip


def test_a_trial_that_was_cut_goes_on_to_the_same_bits(run, monkeypatch):
    one = sweep()
    whole = Told(monkeypatch, "trial-001")
    run_trial({"lr": 0.01}, job(run, one))
    assert [r["report"] for r in whole.results] == [1, 2, 3, 4]
    assert [r["step"] for r in whole.results] == [3, 6, 9, 12]

    first = Told(monkeypatch, "trial-000", end_after=2)
    with pytest.raises(SystemExit):
        run_trial({"lr": 0.01}, job(run, one))
    second = Told(monkeypatch, "trial-000")
    run_trial({"lr": 0.01}, job(run, one))
    assert second.results[0]["report"] == 2  # its last checkpoint's evaluation is said again
    assert first.values("val_loss") | second.values("val_loss") == whole.values("val_loss")
    kept = Kept(run.root, trial_prefix("s-1", "trial-000"))
    best = min(whole.results, key=lambda r: r["val_loss"])
    assert (kept.best, kept.best_value) == (best["step"], best["val_loss"])
    checkpoint = kept.best_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step == best["step"]
    run.flush()
    assert any("worker trial-000" in line for line in run.logs("trial-000"))


def test_a_copied_trial_has_the_other_s_weights_and_its_own_rate(run, monkeypatch, tmp_path):
    one = sweep(scheduler={"pbt": {"mutate": ["lr"]}})
    donor = Told(monkeypatch, "trial-000")
    run_trial({"lr": 0.02}, job(run, one))
    assert donor.marks[1] == {"prefix": "runs/s-1/trials/trial-000", "step": 6}
    seen = []
    from sundog.runs.loop import Loop

    evaluate = Loop._evaluate

    def spy(loop, *arguments, **more):
        seen.append((loop.step, loop.replica.optimizer.param_groups[0]["lr"]))
        return evaluate(loop, *arguments, **more)

    monkeypatch.setattr(Loop, "_evaluate", spy)
    copy = Told(monkeypatch, "trial-001", mark=donor.marks[1], folder=tmp_path)
    run_trial({"lr": 0.005}, job(run, one))
    assert copy.results[0]["report"] == 2
    assert copy.results[0]["val_loss"] == donor.results[1]["val_loss"]
    assert copy.results[-1]["val_loss"] != donor.results[-1]["val_loss"]
    assert seen[0] == (6, 0.005)
    assert Kept(run.root, trial_prefix("s-1", "trial-001")).last == 12


def test_a_metric_that_nobody_reports_ends_everything(run, monkeypatch):
    told = Told(monkeypatch)
    run_trial({"lr": 0.01}, job(run, sweep(metric="acuracy")))
    (last,) = told.results
    assert last["fatal"]
    assert "no 'acuracy', only" in last["fault"]


def test_an_error_of_the_user_is_the_trial_s_last_word(run, monkeypatch):
    told = Told(monkeypatch)
    run_trial({"nix": 0.1}, job(run, sweep()))
    (last,) = told.results
    assert not last["fatal"]
    assert "nix" in last["fault"]


def test_a_function_goes_on_from_its_state(run, monkeypatch, tmp_path):
    (tmp_path / "functions_of_a_trial.py").write_text(
        "def climb(params, report):\n"
        "    for n in range(int(report.state or 0), 5):\n"
        "        report({'score': n * params['x']}, state=str(n + 1).encode())\n"
    )
    one = sweep(
        run={"run": "r", "recipe": "functions_of_a_trial:climb", "steps": 5}, metric="score",
        mode="max", space={"x": {"uniform": [0, 1]}},
    )  # fmt: skip
    task = job(run, one) | {"directory": str(tmp_path)}
    Told(monkeypatch, end_after=3)
    with pytest.raises(SystemExit):
        run_trial({"x": 0.5}, task)
    # Killed after the third state was saved, before anybody wrote its report down.
    rest = Told(monkeypatch)
    run_trial({"x": 0.5}, task | {"reported": {"trial-000": 2}})
    assert [r["report"] for r in rest.results] == [3, 4, 5]
    assert rest.results[0]["score"] == 1.0
    heard = Told(monkeypatch)
    run_trial({"x": 0.5}, task | {"reported": {"trial-000": 5}})
    assert heard.results == []
    assert rest.results[-1]["score"] == 2.0


def test_another_s_checkpoint_is_the_source_until_there_is_an_own_one(tmp_path):
    root = open_root(tmp_path.as_uri())
    kept = Kept(root, "runs/s-1/trials/trial-001")
    assert kept.source() is None
    kept.note(4, 0.5)
    kept.take_over({"prefix": kept.prefix, "step": 4})  # its own: nothing to take over
    assert kept.source() == (kept, 4)
    kept.take_over({"prefix": "runs/s-1/trials/trial-000", "step": 6})
    again = Kept(root, kept.prefix)  # after a crash before its first report
    source = again.source()
    assert source is not None
    assert (source[0].prefix, source[1]) == ("runs/s-1/trials/trial-000", 6)
    assert (again.best, again.best_value) == (4, 0.5)
    again.note(8, None)
    assert Kept(root, kept.prefix).source()[1] == 8  # type: ignore[index]


FUNCTIONS = """
import math
import numpy as np

def noted(params, report):
    report({'score': np.float32(0.5), 'note': 'fine'}, state=b'1')

def blown(params, report):
    for n in range(int(report.state or 0), 4):
        report({'score': [math.nan, 0.9, math.inf, 0.4][n]}, state=str(n + 1).encode())
"""


def function_sweep(tmp_path, name, **changes):
    (tmp_path / "functions_that_err.py").write_text(FUNCTIONS)
    run = {"run": "r", "recipe": f"functions_that_err:{name}", "steps": 4}
    space = {"x": {"uniform": [0, 1]}}
    return spec(**({"run": run, "metric": "score", "space": space} | changes))


def test_a_report_of_words_ends_the_trial_and_not_the_sweep(run, monkeypatch, tmp_path):
    one = function_sweep(tmp_path, "noted")
    for _ in range(2):  # and again when it is submitted again
        told = Told(monkeypatch)
        run_trial({"x": 0.5}, job(run, one) | {"directory": str(tmp_path)})
        (last,) = told.results
        assert "note: 'fine', which is no number" in last["fault"]
        assert not last["fatal"]


def test_words_that_an_older_state_was_kept_with_are_not_said_again(run, monkeypatch, tmp_path):
    one = function_sweep(tmp_path, "blown")
    kept = Kept(run.root, trial_prefix("s-1", "trial-000"))
    kept.checkpoints.save(1, {"state": b"1"}, {"metrics": {"score": "good", "n": 1}})
    kept.note(1, None)
    told = Told(monkeypatch)
    run_trial({"x": 0.5}, job(run, one) | {"directory": str(tmp_path)})
    assert [r["report"] for r in told.results] == [2, 3, 4]


def test_no_number_is_never_the_best(run, monkeypatch, tmp_path):
    Told(monkeypatch)
    one = function_sweep(tmp_path, "blown")
    run_trial({"x": 0.5}, job(run, one) | {"directory": str(tmp_path)})
    kept = Kept(run.root, trial_prefix("s-1", "trial-000"))
    assert (kept.best, kept.best_value) == (2, 0.9)
    kept.best_value = float("nan")  # as older states may have it
    assert kept.improved(0.1, "max")


class Explodes(Rated):
    def loss(self, model, batch, rng):
        return super().loss(model, batch, rng) * self.lr


@pytest.mark.parametrize("more", [{}, {"clip": 1.0}])
def test_a_loss_that_is_no_number_is_a_result_not_a_failure(run, monkeypatch, more):
    told = Told(monkeypatch)
    one = sweep(run=RUN | {"recipe": "test_trial:Explodes"} | more)
    run_trial({"lr": 1e30}, job(run, one))
    assert told.results[-1]["diverged"]
    assert not told.results[-1]["fatal"]
    assert "at step" in told.results[-1]["fault"]


def test_the_best_state_survives_a_life_that_passes_its_step_again(tmp_path):
    """A trial that copied another's earlier checkpoint comes by the step of its own best again."""
    kept = Kept(open_root(tmp_path.as_uri()), "runs/s-1/trials/trial-000")
    other = Kept(kept.root, "runs/s-1/trials/trial-001")
    for step, value in ((1, 0.5), (2, 0.9)):
        kept.checkpoints.save(step, {"state": b"old %d" % step}, {"metrics": {}})
        kept.note(step, value)
    other.checkpoints.save(1, {"state": b"other"}, {})
    kept.take_over({"prefix": other.prefix, "step": 1})
    assert not kept.improved(0.7, "max")
    kept.make_room(2)
    kept.checkpoints.save(2, {"state": b"new 2"}, {})
    kept.note(2, None)
    again = Kept(kept.root, kept.prefix)
    best = again.best_checkpoint()
    assert best is not None
    assert best.parts["state"] == b"old 2"
    again.checkpoints.save(3, {"state": b"new 3"}, {})
    again.note(3, 0.95)
    assert Kept(kept.root, kept.prefix).best_checkpoint().parts["state"] == b"new 3"  # type: ignore[union-attr]
