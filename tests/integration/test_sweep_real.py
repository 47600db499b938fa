"""The real thing: a digits sweep that is killed twice, and Ray's own Tune examples as our jobs."""

from __future__ import annotations

import signal

import pytest
import yaml
from test_runs_train import REPO, folder, root, submit  # noqa: F401
from test_sweep_life import drive, finish, wait_for_reports
from test_sweep_life import sweep as run_to_end

from sundog.runs import sweep_book
from sundog.storage.runs import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


def digits(folder, name: str, **changes) -> str:  # noqa: F811
    spec = yaml.safe_load((REPO / "jobs/specs/digits-sweep.yaml").read_text())
    spec["run"] |= {"steps": 120, "evaluate": "20 steps", "checkpoint": {"every": 10}}
    spec |= {"sweep": name, "register": None, "trials": 16, "concurrent": 2, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return f"{name}.yaml"


@pytest.mark.parametrize(
    "scheduler", ["fifo", {"asha": {"grace": 2, "eta": 3}}], ids=["fifo", "asha"]
)
def test_killed_twice_it_ends_with_the_same_best(local_ray, folder, root, scheduler):  # noqa: F811
    name = "undisturbed-" + ("fifo" if scheduler == "fifo" else "asha")
    spec = digits(folder, name, scheduler=scheduler)
    code, text = run_to_end(local_ray, folder, spec, f"{name}-1")
    assert code == 0, text
    whole = RunFolder(root, f"{name}-1").record()

    broken = f"{name}-killed"
    for reports, number in ((15, signal.SIGKILL), (35, signal.SIGTERM)):
        driver = drive(local_ray, folder, spec, broken)
        wait_for_reports(root, broken, reports)
        driver.send_signal(number)
        finish(driver)
    code, text = run_to_end(local_ray, folder, spec, broken)
    assert code == 0, text
    record = RunFolder(root, broken).record()
    assert len(record["trials"]) == 16
    params = {t["trial"]: t["params"] for t in whole["trials"]}
    assert {t["trial"]: t["params"] for t in record["trials"]} == params
    best, same = whole["metrics"]["accuracy"], record["metrics"]["accuracy"]
    if scheduler == "fifo":
        found = {t["trial"]: t["value"] for t in record["trials"]}
        assert found == {t["trial"]: t["value"] for t in whole["trials"]}
        assert record["best"] == whole["best"]
        assert record["metrics"] == whole["metrics"]
    else:
        assert abs(best - same) <= 0.005
    for trial in sweep_book.read(RunFolder(root, broken)).trials.values():
        numbers = [n for n, _ in trial.reports]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("scheduler", ["halving", {"hyperband": {}}, {"pbt": {"every": 2, "mutate": ["lr"]}}],
                         ids=["halving", "hyperband", "pbt"])  # fmt: skip
def test_schedulers_that_pause_on_a_real_recipe(local_ray, folder, root, scheduler):  # noqa: F811
    name = "paused-" + (scheduler if isinstance(scheduler, str) else next(iter(scheduler)))
    spec = digits(folder, name, scheduler=scheduler, trials=6)
    code, text = run_to_end(local_ray, folder, spec, f"{name}-1")
    assert code == 0, text
    record = RunFolder(root, f"{name}-1").record()
    assert all(t["state"] in ("finished", "stopped") for t in record["trials"])
    assert record["metrics"]["accuracy"] > 0.8


# Ray refuses `ray.init(num_cpus=…)`, which three of its examples say, inside any job of a cluster
# that runs; nothing else of them is changed.
AS_A_JOB = """
import runpy, sys
import ray

begin = ray.init
ray.init = lambda *arguments, num_cpus=None, **more: begin(*arguments, **more)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "example",
    [
        "async_hyperband_example", "hyperband_example", "hyperband_function_example",
        "pbt_function", "optuna_example", "tune_basic_example", "custom_func_checkpointing",
    ],
)  # fmt: skip
def test_ray_s_own_examples_pass_as_jobs(local_ray, folder, example):  # noqa: F811
    (folder / "as_a_job.py").write_text(AS_A_JOB)
    code, text = submit(
        local_ray, folder, f"python as_a_job.py ray.tune.examples.{example} --smoke-test"
    )
    assert code == 0, text[-3000:]
