"""A run whose driver, or whose whole head, is killed: the same run id goes on where it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from test_runs_nodes import RECIPE

from sundog.rayapi.local import LocalRay
from sundog.runs.verify import verify
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
REPO = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def work(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    shutil.copytree(REPO / "jobs", place / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "slow.py").write_text(RECIPE)
    return place


def submit(ray: LocalRay, work: Path, run_id: str, steps: int, *options: str) -> None:
    spec = {
        "run": "r", "recipe": "slow:Slow", "workers": 2, "batch": 32, "steps": steps,
        "checkpoint": {"every": 25, "keep": 2},
    }  # fmt: skip
    (work / "run.yaml").write_text(yaml.safe_dump(spec))
    subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", ".", *options, "--", "python",
         "jobs/train.py", "run.yaml", "--run-id", run_id],
        cwd=work, env=ray.environment(), check=True, capture_output=True, timeout=400,
    )  # fmt: skip


def wait_for_checkpoint(root, run_id: str) -> int:
    deadline = time.monotonic() + 240
    while not (steps := RunFolder(root, run_id).checkpoint_steps()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return steps[-1]


def went_on(root, run_id: str, steps: int, saved: int) -> None:
    run = RunFolder(root, run_id)
    assert run.record()["state"] == "finished"
    assert any(e["event"] == "run.resumed" for e in run.events())
    [cut] = [e for e in run.events() if e["event"] == "run.recovered" and e["cause"] == "driver"]
    assert set(cut["stages"]) == {"noticed", "gathered", "formed", "stepped"}
    assert sum(cut["stages"].values()) <= cut["took_s"] + 0.1
    first = [e for e in run.events() if e["event"] == "run.checkpoint" and e["step"] > saved]
    assert first, "nothing was saved after it went on"
    verdict = verify(root, run_id)
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, steps)


def test_a_killed_driver_s_run_goes_on_under_its_id(local_ray, work):
    root = open_root(local_ray.endpoints.root)
    submit(local_ray, work, "driven", 100_000, "--no-wait")
    saved = wait_for_checkpoint(root, "driven")
    drivers = [
        p for p in local_ray.processes()
        if "jobs/train.py" in p.cmdline() and "driven" in p.cmdline()
    ]  # fmt: skip
    assert drivers
    for process in drivers:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + 60
    while any("RayTrainWorker" in " ".join(p.cmdline()) for p in alive(local_ray)):
        assert time.monotonic() < deadline, "workers outlived their driver"
        time.sleep(0.2)
    steps = RunFolder(root, "driven").checkpoint_steps()[-1] + 100
    submit(local_ray, work, "driven", steps)
    went_on(root, "driven", steps, saved)


def test_a_killed_head_s_run_goes_on_on_the_next_cluster(work, tmp_path):
    address = f"file://{tmp_path}/root"
    root = open_root(address)
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])

    def cluster() -> LocalRay:
        return LocalRay(address, num_cpus=2, object_store_bytes=256 << 20, token_path=token)

    first = cluster()
    first.start()
    try:
        submit(first, work, "headed", 100_000, "--no-wait")
        saved = wait_for_checkpoint(root, "headed")
        for process in alive(first):
            with suppress(psutil.NoSuchProcess):
                process.kill()  # all of it at once, as when the machine loses power
    finally:
        first.stop()
    steps = RunFolder(root, "headed").checkpoint_steps()[-1] + 100
    with cluster() as second:
        submit(second, work, "headed", steps)
    went_on(root, "headed", steps, saved)


def alive(ray: LocalRay) -> list[psutil.Process]:
    out = []
    for process in ray.processes():
        try:
            process.cmdline()
            out.append(process)
        except psutil.Error:
            continue
    return out
