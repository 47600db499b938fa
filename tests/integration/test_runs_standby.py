"""A live run with room for a standby: what Prometheus sees of it, and a standby that cannot get ready."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from test_runs_nodes import RECIPE as SLOW

from sundog.runs.drill import KILL_WORKER, choose
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
REPO = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RECIPE = """
import pathlib
from slow import Slow

class Hindered(Slow):
    def model(self):
        if pathlib.Path(self.params["hindrance"]).exists():
            raise ValueError("no model today")
        return super().model()
"""


@pytest.fixture(scope="module")
def hindrance(tmp_path_factory) -> Path:
    """While this file is there no process can build the recipe's model."""
    return tmp_path_factory.mktemp("hindrance") / "file"


@pytest.fixture(scope="module")
def run(local_ray, hindrance, tmp_path_factory) -> Iterator[RunFolder]:
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(REPO / "jobs", work / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (work / "slow.py").write_text(SLOW)
    (work / "hindered.py").write_text(RECIPE)
    spec = {
        "run": "hindered", "recipe": "hindered:Hindered", "workers": "1..2", "batch": 32,
        "steps": 100_000, "checkpoint": {"every": 10_000, "keep": 2},
        "params": {"hindrance": str(hindrance)},
    }  # fmt: skip
    (work / "run.yaml").write_text(yaml.safe_dump(spec))
    subprocess.run(
        [BIN / "ray", "job", "submit", "--no-wait", "--working-dir", ".", "--", "python",
         "jobs/train.py", "run.yaml", "--run-id", "hindered-1"],
        cwd=work, env=local_ray.environment(), check=True, capture_output=True, timeout=200,
    )  # fmt: skip
    run = RunFolder(open_root(local_ray.endpoints.root), "hindered-1")
    until(run, lambda: workers(run) == 2)
    yield run
    subprocess.run(
        [sys.executable, "-m", "sundog", "runs", "cancel", "hindered-1", "--yes"],
        env={**local_ray.environment(), **local_ray.endpoints.env()},
        check=False, capture_output=True, timeout=100,
    )  # fmt: skip


def until(run: RunFolder, what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 180
    while not what():
        assert time.monotonic() < deadline, "".join(run.logs())
        time.sleep(0.2)


def workers(run: RunFolder) -> int:
    if not run.root.exists(run.key("record.json")):
        return 0
    return len(run.record().get("placed") or [])


def test_prometheus_sees_the_run(local_ray, run):
    address = f"http://127.0.0.1:{local_ray._ports['metrics-export-port']}/metrics"
    wanted = {"ray_sundog_run_step", "ray_sundog_run_workers", "ray_sundog_run_loss"}
    seen: dict[str, float] = {}

    def look() -> bool:
        try:
            text = httpx.get(address, timeout=5).text
        except httpx.HTTPError:
            return False
        for line in text.splitlines():
            if 'run="hindered-1"' in line:
                seen[line.split("{")[0]] = float(line.rsplit(" ", 1)[1])
        return wanted <= set(seen)

    until(run, look)
    assert seen["ray_sundog_run_step"] > 0
    assert seen["ray_sundog_run_workers"] == 2


def test_a_standby_that_fails_is_said_and_tried_again(run, hindrance):
    until(run, lambda: workers(run) == 2)
    hindrance.touch()
    os.kill(choose(run.record(), KILL_WORKER).pid, signal.SIGKILL)
    until(run, lambda: "ValueError: no model today" in "".join(run.logs("standby")))
    assert "a standby worker failed" in "".join(run.logs("standby"))
    until(run, lambda: workers(run) == 1)  # it goes on meanwhile
    hindrance.unlink()
    until(run, lambda: workers(run) == 2)
