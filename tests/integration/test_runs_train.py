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

from sundog.runs.verify import verify
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder

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
        cwd=folder, env=local_ray.environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    return answer.returncode, answer.stdout + answer.stderr


def spec(folder: Path, name: str, **changes) -> str:
    import yaml

    text = yaml.safe_load((REPO / "jobs/specs/digits.yaml").read_text())
    text |= {"run": name, "register": None, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(text))
    return f"{name}.yaml"


def wait_for_step(root, run_id: str, step: int) -> dict:
    deadline = time.monotonic() + 120
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
    deadline = time.monotonic() + 20
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
    version = Registry(root).get("digits@champion")
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


def test_a_recipe_of_the_user_s_own_folder(local_ray, root, tmp_path):
    (tmp_path / "mine.py").write_text(
        (REPO / "jobs/recipes/digits.py").read_text().replace("class Digits", "class Mine")
    )
    name = spec(tmp_path, "mine", recipe="mine:Mine", steps=20, workers=1)
    (tmp_path / "go.py").write_text("import sundog; sundog.train()")
    code, text = submit(local_ray, tmp_path, f"python go.py {name} --run-id mine-1")
    assert code == 0, text
    assert RunFolder(root, "mine-1").record()["step"] == 20


def test_a_killed_worker_costs_steps_and_no_samples(local_ray, folder, root):
    name = spec(folder, "killed", steps=1500, checkpoint={"every": 50, "keep": 2})
    submit(local_ray, folder, f"python jobs/train.py {name} --run-id killed-1", "--no-wait")
    wait_for_step(root, "killed-1", 100)
    workers_of(local_ray)[0].send_signal(signal.SIGKILL)
    wait_for_step(root, "killed-1", 1500)
    deadline = time.monotonic() + 60
    while (
        RunFolder(root, "killed-1").record()["state"] == "running" and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    run = RunFolder(root, "killed-1")
    assert run.record()["state"] == "finished"
    assert "run.recovered" in [event["event"] for event in run.events()]
    verdict = verify(root, "killed-1")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 1500)


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


def test_a_cancelled_run_says_so_and_goes_on_when_asked(local_ray, folder, root):
    name = spec(folder, "stopped", steps=1200, checkpoint={"every": 20, "keep": 2})
    submit(local_ray, folder, f"python jobs/train.py {name} --run-id stopped-1", "--no-wait",
           "--submission-id", "stop-me")  # fmt: skip
    wait_for_step(root, "stopped-1", 60)
    subprocess.run([BIN / "ray", "job", "stop", "stop-me"], env=local_ray.environment(),
                   capture_output=True, timeout=60, check=True)  # fmt: skip
    assert RunFolder(root, "stopped-1").record()["state"] == "cancelled"
    assert nothing_is_left(local_ray)
    code, text = submit(local_ray, folder, f"python jobs/train.py {name} --run-id stopped-1")
    assert code == 0, text
    assert "step 1/" not in text
    verdict = verify(root, "stopped-1")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 1200)


@pytest.mark.parametrize(
    ("name", "changes", "code", "message"),
    [
        ("nodata", {"data": "digts"}, 1, "digits"),
        (
            "norecipe",
            {"recipe": "jobs.recipes.digit:Digits"},
            1,
            "did you mean jobs.recipes.digits",
        ),
        ("badparam", {"params": {"depth": 3}}, 1, "depth"),
        ("diverges", {"params": {"lr": 1e30}, "steps": 50}, 1, "lower the learning rate"),
        ("toomany", {"workers": 64, "micro_batch": 2}, 1, "64 workers need 64 CPU"),
        ("typo", {"step": 3}, 2, "did you mean 'steps'?"),
    ],
)
def test_bad_input_is_one_clear_message(local_ray, folder, root, name, changes, code, message):
    file = spec(folder, name, register={"as": f"never-{name}"}, **changes)
    done, text = submit(local_ray, folder, f"python jobs/train.py {file} --run-id {name}-1")
    assert done != 0
    assert message in text
    assert "Traceback" not in text
    assert f"exit code {code}" in text.lower() or code == 1
    assert f"never-{name}" not in Registry(root).models()
    if name != "typo":
        record = RunFolder(root, f"{name}-1").record()
        assert record["state"] == "failed"
        assert message in json.dumps(record["message"])
    assert nothing_is_left(local_ray)


def test_a_recipe_that_raises_in_a_worker_is_not_tried_again(local_ray, folder, root):
    (folder / "raises.py").write_text(
        "from jobs.recipes.digits import Digits\n"
        "class Raises(Digits):\n"
        "    def loss(self, model, batch, rng):\n"
        "        raise KeyError('no such column')\n"
    )
    name = spec(folder, "raises", recipe="raises:Raises")
    code, text = submit(local_ray, folder, f"python jobs/train.py {name} --run-id raises-1")
    assert code != 0
    assert "KeyError: 'no such column' (raises.py:4, in loss)" in text
    assert RunFolder(root, "raises-1").record()["state"] == "failed"
    assert nothing_is_left(local_ray)
