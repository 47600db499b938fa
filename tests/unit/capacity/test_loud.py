"""A head or a laptop that cannot import the node provider says so at once, and starts nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).parents[3] / "cluster-configs"


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose Sundog is there and cannot be imported."""
    package = tmp_path / "broken" / "sundog"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libthing.so.3 is missing')\n")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python3").symlink_to(sys.executable)
    (bin_folder / "ray").write_text(f"#!/bin/sh\necho ray $1 >> {tmp_path}/ray-ran\n")
    (bin_folder / "ray").chmod(0o755)
    return {
        **os.environ, "PYTHONPATH": str(package.parent), "HOME": str(tmp_path),
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["aws-train", "aws-serve", "gcp", "azure"])
def test_setup_and_the_heads_start_fail_with_the_reason_before_ray_starts(
    name: str, broken: dict[str, str]
) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    guarded = [
        c
        for c in config["setup_commands"] + config["head_start_ray_commands"]
        if "import sundog.capacity.provider" in c
    ]
    assert len(guarded) == 2, "one in the setup, one before the head's ray start"
    for command in guarded:
        done = subprocess.run(
            ["bash", "-c", command], env=broken, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert "libthing.so.3 is missing" in done.stderr
        assert "launched" in done.stderr.splitlines()[-1]
    starts = config["head_start_ray_commands"]
    assert starts.index(guarded[1]) < next(i for i, c in enumerate(starts) if "ray start" in c)
    assert not (Path(broken["HOME"]) / "ray-ran").exists()


def test_ray_up_itself_fails_with_the_reason(broken: dict[str, str], tmp_path: Path) -> None:
    ray = Path(sys.executable).parent / "ray"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("1" * 64)
    done = subprocess.run(
        [sys.executable, str(ray), "up", "-y", "--no-config-cache", str(CONFIGS / "aws-train.yaml")],
        env=broken, cwd=CONFIGS.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "libthing.so.3 is missing" in done.stdout + done.stderr
