"""A drill on a live run through the command line: a real kill, and the receipt of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sundog.runs.verify import verify
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder

pytestmark = pytest.mark.timeout(600)
REPO = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("drill")
    shutil.copytree(REPO / "jobs", place / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def shell(local_ray, folder: Path, *command: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command, cwd=folder,
        env={**local_ray.environment(), **local_ray.endpoints.env(), "SUNDOG_HOME": str(folder)},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def job(local_ray, folder: Path, entrypoint: str, *options: str) -> tuple[int, str]:
    code, out, err = shell(
        local_ray, folder, str(BIN / "ray"), "job", "submit", "--working-dir", ".", *options, "--",
        *entrypoint.split(),
    )  # fmt: skip
    return code, out + err


def sundog(local_ray, folder: Path, *arguments: str) -> tuple[int, str, str]:
    return shell(local_ray, folder, sys.executable, "-m", "sundog", *arguments)


@pytest.fixture(scope="module")
def root(local_ray, folder):
    code, text = job(local_ray, folder, "python jobs/ingest.py python-docs")
    assert code == 0, text
    return open_root(local_ray.endpoints.root)


@pytest.mark.long
def test_a_streamed_language_model_is_drilled_and_registered(local_ray, folder, root):
    spec = yaml.safe_load((REPO / "jobs/specs/gpt.yaml").read_text())
    spec |= {
        "run": "drilled", "steps": 100_000, "batch": 16, "micro_batch": 4, "evaluate": 20_000,
        "checkpoint": {"every": 20, "keep": 2, "best": "min val_loss"}, "profile": 3,
        "params": {"context": 32, "width": 32, "depth": 1, "heads": 2},
        "register": {"as": "drilled"},
    }  # fmt: skip
    (folder / "gpt.yaml").write_text(yaml.safe_dump(spec))
    job(local_ray, folder, "python jobs/train.py gpt.yaml --run-id drilled-1", "--no-wait")
    run = RunFolder(root, "drilled-1")
    deadline = time.monotonic() + 200
    while not ready(run):
        assert time.monotonic() < deadline, "".join(run.logs())
        time.sleep(0.2)
    code, _, err = sundog(local_ray, folder, "drill", "run", "drilled-1", "--kill-worker")
    assert code == 1
    assert "add --yes" in err  # it asks first
    code, _, err = sundog(local_ray, folder, "drill", "run", "drilled-1", "--kill-node", "--yes")
    assert code == 1
    assert "only --kill-worker" in err
    code, out, err = sundog(local_ray, folder, "drill", "run", "drilled-1", "--yes", "--json")
    assert code == 0, out + err
    receipt = json.loads(out)
    assert receipt["workers"] == [2, 1]
    assert (receipt["lost"], receipt["duplicated"]) == (0, 0)
    assert receipt["proven"] > 0
    assert receipt["took_s"] > 0
    assert receipt["usd"] is None  # this machine has no price
    code, _, err = sundog(local_ray, folder, "runs", "cancel", "drilled-1", "--yes")
    assert code == 0, err
    code, _, err = sundog(local_ray, folder, "drill", "run", "drilled-1", "--yes")
    assert code == 1
    assert "it is cancelled" in err
    # It goes on in the middle of its stream, to an end that is near now, and is registered.
    spec |= {"steps": run.checkpoint_steps()[-1] + 40, "evaluate": 1000}
    (folder / "gpt.yaml").write_text(yaml.safe_dump(spec))
    code, text = job(local_ray, folder, "python jobs/train.py gpt.yaml --run-id drilled-1")
    assert code == 0, text
    record, verdict = run.record(), verify(root, "drilled-1")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, spec["steps"])
    assert any("tokens/s" in line and "to go" in line for line in run.logs())
    assert record["node_hours"] > 0
    assert record["metrics"]["bits_per_byte"] < 6
    assert root.children("runs/drilled-1/profile")
    assert {e["event"] for e in run.events()} >= {"run.recovered", "run.progress", "run.best"}
    picture = folder / "drilled.svg"
    code, _, err = sundog(local_ray, folder, "runs", "plot", "drilled-1", "-o", str(picture))
    assert code == 0, err
    assert "recovered 2→1" in picture.read_text()
    assert Registry(root).get("drilled@1").signature.inputs[0].name == "tokens"


def ready(run: RunFolder) -> bool:
    try:
        record = run.record()
    except Exception:
        return False
    return (record.get("step") or 0) > 40 and len(record.get("placed") or []) == 2
