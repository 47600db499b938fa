"""Training through Ray's own job CLI, as the README prints it, and what bad input gets."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from check_docs import blocks

from sundog.errors import RunBusy, SundogError
from sundog.runs.verify import verify
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder

pytestmark = pytest.mark.timeout(900)  # on a busy machine starting a process may take a minute
REPO = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory as a user has one: the jobs of this repository and nothing else."""
    place = tmp_path_factory.mktemp("work")
    shutil.copytree(REPO / "jobs", place / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture(scope="module")
def root(local_ray, folder):
    code, text = submit(local_ray, folder, "python jobs/ingest.py")
    assert code == 0, text
    return open_root(local_ray.endpoints.root)


def submit(local_ray, folder: Path, entrypoint: str, *options: str) -> tuple[int, str]:
    answer = subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", ".", *options, "--", *entrypoint.split()],
        cwd=folder, env=local_ray.environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    return answer.returncode, answer.stdout + answer.stderr


def spec(folder: Path, name: str, **changes) -> str:
    import yaml

    text = yaml.safe_load((REPO / "jobs/specs/digits.yaml").read_text())
    text |= {"run": name, "register": None, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(text))
    return f"{name}.yaml"


def wait_for_step(root, run_id: str, step: int) -> dict:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        run = RunFolder(root, run_id)
        try:
            record = run.record()
        except Exception:
            record = {}
        if (record.get("step") or 0) >= step:
            return record
        time.sleep(0.2)
    raise AssertionError(f"{run_id} never came to step {step}")


def wait_until_ended(run: RunFolder) -> None:
    deadline = time.monotonic() + 240
    while run.record()["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.3)


def workers_of(local_ray) -> list[psutil.Process]:
    out = []
    for process in local_ray.processes():
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                out.append(process)
        except psutil.Error:
            continue
    return out


def nothing_is_left(local_ray) -> bool:
    deadline = time.monotonic() + 60
    while workers_of(local_ray) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not workers_of(local_ray)


def test_a_run_trains_registers_and_is_not_done_twice(local_ray, folder, root):
    code, text = submit(
        local_ray, folder, "python jobs/train.py jobs/specs/digits.yaml --run-id first"
    )
    assert code == 0, text
    assert "2 workers" in text
    assert "samples/s" in text
    record = RunFolder(root, "first").record()
    assert record["state"] == "finished"
    assert record["metrics"]["accuracy"] > 0.93
    # By its own reference: the champion may be another run's by now, of this module or before it.
    version = Registry(root).get(record["model"])
    assert version.lineage["data"] == "digits@1"
    assert version.lineage["run"] == "first"
    assert version.lineage["code"].startswith("files:")
    assert verify(root, "first").good
    assert any("worker 0 on" in line for line in RunFolder(root, "first").logs(0))
    code, text = submit(
        local_ray, folder, "python jobs/train.py jobs/specs/digits.yaml --run-id first"
    )
    assert code == 0
    assert "finished already" in text
    assert nothing_is_left(local_ray)


@pytest.mark.long
def test_the_readme_s_own_recipe_trains_in_a_folder_of_its_own(local_ray, root, tmp_path):
    for block in blocks((REPO / "README.md").read_text()):
        if block.file.startswith("mine/"):
            (tmp_path / Path(block.file).name).write_text(block.body)
    answer = subprocess.run(
        [BIN / "sundog", "train", "wine.yaml", "--json"],
        cwd=tmp_path, env=local_ray.environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert said["state"] == "SUCCEEDED"
    record = RunFolder(root, said["run_id"]).record()
    assert record["step"] == 200
    assert record["model"] == said["model"]
    assert Registry(root).get(said["model"]).metrics["accuracy"] > 0.8


@pytest.mark.parametrize(
    "stock", [False, pytest.param(True, marks=pytest.mark.long)], ids=["elastic", "stock"]
)
def test_a_killed_worker_costs_no_sample(local_ray, folder, root, stock):
    run_id = f"killed-{'stock' if stock else 'elastic'}"
    name = spec(folder, "killed", steps=900, workers="1..2", checkpoint={"every": 50, "keep": 2})
    env = {"env_vars": {"SUNDOG_STOCK_TRAIN": "1"} if stock else {}}
    submit(local_ray, folder, f"python jobs/train.py {name} --run-id {run_id}", "--no-wait",
           "--runtime-env-json", json.dumps(env))  # fmt: skip
    wait_for_step(root, run_id, 60)
    workers_of(local_ray)[0].send_signal(signal.SIGKILL)
    run = RunFolder(root, run_id)
    wait_until_ended(run)
    assert run.record()["state"] == "finished"
    assert 0 < run.record()["goodput"] <= 1
    recovered = [e for e in run.events() if e["event"] == "run.recovered"]
    assert recovered
    if not stock:  # the survivor went on alone, from its own memory
        assert recovered[0]["workers"] == [2, 1]
        assert recovered[0]["steps_back"] <= 1
    verdict = verify(root, run_id)
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 900)


@pytest.mark.slow
def test_a_worker_that_dies_too_often_fails_the_run(local_ray, folder, root):
    name = spec(folder, "dies", steps=5000, max_failures=0)
    submit(local_ray, folder, f"python jobs/train.py {name} --run-id dies-1", "--no-wait",
           "--submission-id", "dies")  # fmt: skip
    wait_for_step(root, "dies-1", 20)
    workers_of(local_ray)[0].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while RunFolder(root, "dies-1").record()["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.2)
    record = RunFolder(root, "dies-1").record()
    assert record["state"] == "failed"
    assert "more than max_failures (0)" in record["message"]
    assert nothing_is_left(local_ray)


@pytest.mark.slow
def test_a_cancelled_run_says_so_and_goes_on_when_asked(local_ray, folder, root):
    # Long enough for the slowest machine to be told to stop in time; then only a little more.
    name = spec(folder, "stopped", steps=100_000, checkpoint={"every": 20, "keep": 2})
    submit(local_ray, folder, f"python jobs/train.py {name} --run-id stopped-1", "--no-wait",
           "--submission-id", "stop-me")  # fmt: skip
    wait_for_step(root, "stopped-1", 60)
    subprocess.run([BIN / "ray", "job", "stop", "stop-me"], env=local_ray.environment(),
                   capture_output=True, timeout=200, check=True)  # fmt: skip
    assert RunFolder(root, "stopped-1").record()["state"] == "cancelled"
    assert nothing_is_left(local_ray)
    steps = RunFolder(root, "stopped-1").checkpoint_steps()[-1] + 40
    spec(folder, "stopped", steps=steps, checkpoint={"every": 20, "keep": 2})
    code, text = submit(local_ray, folder, f"python jobs/train.py {name} --run-id stopped-1")
    assert code == 0, text
    assert "step 1/" not in text
    verdict = verify(root, "stopped-1")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, steps)


@pytest.fixture(scope="module")
def connected(local_ray, folder, root):
    """This process as a driver in the working directory: what fails early needs no job."""
    import os

    import ray

    before = Path.cwd()
    os.chdir(folder)
    ray.init(address=local_ray.endpoints.gcs, log_to_driver=False, logging_level="ERROR")
    yield root
    ray.shutdown()
    os.chdir(before)


def drive(root, name: str, **changes):
    import yaml

    from sundog.runs.driver import open_folder
    from sundog.runs.train import run_training
    from sundog.spec.run import RunSpec

    text = yaml.safe_load((REPO / "jobs/specs/digits.yaml").read_text())
    fields = {**text, "run": name, "register": {"as": f"never-{name}"}, **changes}
    spec = RunSpec.model_validate(fields)
    return run_training(spec, open_folder(root, name, f"{name}-1"))


@pytest.mark.parametrize(
    ("name", "changes", "message", "fix"),
    [
        ("nodata", {"data": "digts"}, "digts", "digits"),
        (
            "norecipe",
            {"recipe": "jobs.recipes.digit:Digits"},
            "no module 'jobs.recipes.digit'",
            "did you mean jobs.recipes.digits",
        ),
        ("badparam", {"params": {"depth": 3}}, "depth", ""),
        ("toomany", {"workers": 64, "micro_batch": 2}, "64 workers need 64 CPU", "fewer workers"),
        ("model", {"recipe": "raises:Model"}, "no such layer (raises.py:4, in model)", ""),
        ("loss", {"recipe": "raises:Loss"}, "'no such column' (raises.py:7, in loss)", ""),
        ("nan", {"params": {"lr": 1e30}, "steps": 50}, "loss became", "lower the learning rate"),
    ],
)
def test_bad_input_is_one_clear_message(connected, local_ray, folder, name, changes, message, fix):
    (folder / "raises.py").write_text(
        "from jobs.recipes.digits import Digits\n"
        "class Model(Digits):\n"
        "    def model(self):\n"
        "        raise ValueError('no such layer')\n"
        "class Loss(Digits):\n"
        "    def loss(self, model, batch, rng):\n"
        "        raise KeyError('no such column')\n"
    )
    with pytest.raises(SundogError) as caught:
        drive(connected, name, **changes)
    assert message in caught.value.message
    assert fix in caught.value.fix
    assert f"never-{name}" not in Registry(connected).models()
    record = RunFolder(connected, f"{name}-1").record()
    assert record["state"] == "failed"
    assert message in record["message"]
    assert nothing_is_left(local_ray)


def test_a_local_root_is_refused_on_several_machines(connected, monkeypatch):
    import ray

    nodes = [
        {"Alive": True, "NodeManagerAddress": f"10.0.0.{i}", "NodeManagerHostname": f"host{i}"}
        for i in range(2)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(SundogError, match="a folder of one machine, this cluster has 2"):
        drive(connected, "hosts")


def test_a_second_driver_is_refused_while_the_first_lives(connected, monkeypatch):
    from sundog.runs import driver

    monkeypatch.setattr(driver, "LEASE_S", 0.5)
    from sundog.storage.runs import new_run

    first = new_run(connected, "twice", "twice-1").acquire("first", 60)
    with pytest.raises(RunBusy, match="driven by first"):
        drive(connected, "twice")
    first.release()


def test_a_spec_with_a_typo_exits_with_two(local_ray, folder):
    (folder / "typo.yaml").write_text("run: typo\nrecipe: a:B\nstep: 3\n")
    answer = subprocess.run(
        [sys.executable, "jobs/train.py", "typo.yaml"], cwd=folder,
        env=local_ray.environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert answer.returncode == 2
    assert "did you mean 'steps'?" in answer.stderr
    assert "Traceback" not in answer.stderr
