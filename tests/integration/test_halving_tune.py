"""The halving scheduler in a real, small Ray Tune run: pauses, resumes from checkpoints, finishes."""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import ray
from ray import cloudpickle, tune

from sundog.runs.halving import Rule
from sundog.runs.halving_tune import HalvingScheduler

STEPS = 6


def climb(config):
    """A curve that starts low and ends high for larger `top`; counts the steps it really does."""
    start, kept = 0, tune.get_checkpoint()
    if kept:
        with kept.as_directory() as folder:
            start = json.loads((Path(folder) / "at.json").read_text())
    for step in range(start, STEPS):
        value = config["top"] * (1 - 0.5 ** (step + 1))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "at.json").write_text(json.dumps(step + 1))
            tune.report(
                {"value": value, "step": step + 1, "began": start},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


@pytest.fixture
def two_cpus(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "1")
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    ray.init(
        num_cpus=2, object_store_memory=256 * 2**20, include_dashboard=False, log_to_driver=False
    )
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_small_sweep_pauses_resumes_and_finishes(two_cpus, tmp_path):
    scheduler = HalvingScheduler(Rule(max_age=STEPS, rounds=((1.0, 0.4), (2.0, 1.0))))
    tuner = tune.Tuner(
        tune.with_resources(climb, {"cpu": 1}),
        param_space={"top": tune.grid_search([3.0, 9.0, 1.0, 5.0, 7.0, 2.0])},
        tune_config=tune.TuneConfig(
            metric="value", mode="max", scheduler=scheduler, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="halving", verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    best = results.get_best_result(scope="all")
    assert best.config["top"] == 9.0
    assert best.metrics["step"] == STEPS
    steps = [r.metrics["step"] for r in results]
    assert sum(steps) < STEPS * len(steps)  # some were cut,
    assert any(r.metrics["began"] > 0 for r in results)  # some came back where they had paused
