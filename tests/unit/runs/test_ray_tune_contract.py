"""Fails first when Ray moves what `rayapi.tune_feed` and the schedulers rely on. Starts no Ray."""

import tempfile

import numpy as np
import pytest
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import TrialScheduler
from test_sweep_space import spec

from sundog.rayapi.tune_feed import Feed, Wanted
from sundog.runs.sweep_schedule import Watched, scheduler


@pytest.fixture
def feed():
    wanted = [Wanted("trial-000", {"x": 1}), None, Wanted("trial-001", {"x": 2}, paused=True)]
    made = Feed(lambda: wanted.pop(0), lambda: not wanted)
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment("contract", run=lambda config: None, storage_path=folder)
        made.add_configurations([experiment])
        yield made


def test_trials_have_our_ids_and_may_wait(feed):
    first, none, second = feed.next_trial(), feed.next_trial(), feed.next_trial()
    assert (first.trial_id, first.config, first.status) == ("trial-000", {"x": 1}, Trial.PENDING)
    assert none is None
    assert (second.trial_id, second.status) == ("trial-001", Trial.PAUSED)
    assert feed.is_finished()
    assert feed.next_trial() is None


class Controller:
    def get_trials(self):
        return []

    get_live_trials = get_trials


class Stub:
    status = Trial.RUNNING

    def __init__(self, name):
        self.trial_id = name
        self.config = {}

    def is_finished(self):
        return False


def watched(one, past=None, ended=()):
    return Watched(scheduler(one, 9), one, 2, past or {}, ended, lambda name: 1.0)


def test_a_restarted_asha_judges_by_what_was_reported_before():
    one = spec(scheduler={"asha": {"grace": 2, "eta": 2}})
    past = {f"old-{i}": [(1, 0.5), (2, 0.9 + i / 100)] for i in range(4)}
    fresh, seasoned = watched(one), watched(one, past, list(past))
    for each, expected in ((fresh, TrialScheduler.CONTINUE), (seasoned, TrialScheduler.STOP)):
        trial = Stub("new")
        each.on_trial_add(Controller(), trial)
        result = {"report": 2, "accuracy": 0.1}
        assert each.on_trial_result(Controller(), trial, result) == expected
    assert "not in the best 1/2 after 2 reports" in seasoned.reason("new")


def test_a_report_is_heard_once():
    one = spec(scheduler="median")
    each = watched(one, {"t": [(1, 0.5), (2, 0.6)]})
    trial = Stub("t")
    each.on_trial_add(Controller(), trial)
    heard = []
    each.inner.on_trial_result = lambda c, t, r: heard.append(r["report"])  # type: ignore[method-assign]
    for number in (1, 2, 3, 3):
        each.on_trial_result(Controller(), trial, {"report": number, "accuracy": 0.5})
    assert heard == [3]


def test_no_more_run_than_may():
    each = watched(spec())
    assert each.room
    for name in ("a", "b"):
        each.on_trial_add(Controller(), Stub(name))
    assert not each.room


def test_what_pbt_perturbs_stays_in_the_space():
    one = spec(scheduler={"pbt": {"mutate": ["lr", "layers"]}})
    inner = scheduler(one, 9)
    explore = inner._custom_explore_fn  # type: ignore[attr-defined]
    values = explore({"lr": 0.12, "layers": 0, "optimizer": "sgd"})
    assert values == {"lr": 0.1, "layers": 1, "optimizer": "sgd"}
    assert np.isfinite(inner._hyperparam_mutations["lr"].sample(None))  # type: ignore[attr-defined]
