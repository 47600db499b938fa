"""`sundog demo` as `make demo` runs it: two at once, and one whose training step fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.timeout(1500)
REPO = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in ("jobs", "deployments"):
        shutil.copytree(
            REPO / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    return tmp_path


def demo(folder: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SUNDOG_"))}
    return subprocess.Popen(
        [BIN / "sundog", "demo", "--json"],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def started_by(folder: Path) -> list[psutil.Process]:
    """Processes whose working directory or command line says that they belong to this demo."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join([process.cwd(), *process.cmdline()]):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.long
def test_two_demos_at_once_end_well_and_leave_nothing(checkout):
    both = [demo(checkout), demo(checkout)]
    for running in both:
        text, said = running.communicate(timeout=1200)
        assert running.returncode == 0, said
        receipt = json.loads(text)
        names = [step["name"] for step in receipt["steps"]]
        assert names[1:] == [
            "1 ingest", "2 train", "3 sweep", "4 register", "5 deploy", "6 infer", "drill",
        ]  # fmt: skip
        assert 0 < receipt["peak_pss_bytes"] < 6 * 2**30
        assert receipt["node_hours"] > 0
        told = {step["name"]: step["said"] for step in receipt["steps"]}
        assert "0 samples lost, 0 duplicated" in told["drill"]
        assert "from 16 clients" in told["6 infer"]
    assert started_by(checkout) == []


@pytest.mark.long
def test_a_step_that_fails_is_named_and_the_demo_ends_non_zero(checkout):
    recipe = checkout / "jobs/recipes/digits.py"
    recipe.write_text(recipe.read_text().replace("def loss(", "def loss_of_somebody_else("))
    running = demo(checkout)
    text, said = running.communicate(timeout=600)
    assert running.returncode != 0
    assert "demo step '2 train' failed" in text + said
    assert "Traceback" not in text + said
    assert started_by(checkout) == []
