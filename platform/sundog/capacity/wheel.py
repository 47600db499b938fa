"""Builds the wheel that compiled clusters mount on their nodes: the same Sundog everywhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sundog.capacity.commands import LOCAL_WHEEL_DIR
from sundog.errors import ClusterError


def has_project(source: str | Path = ".") -> bool:
    return (Path(source) / "pyproject.toml").is_file() and (Path(source) / "platform").is_dir()


def build_wheel(folder: str | Path = LOCAL_WHEEL_DIR, source: str | Path = ".") -> Path:
    """The one wheel in `folder`, fresh from the project at `source`. ClusterError if it won't build."""
    project, target = Path(source).resolve(), Path(folder)
    if not (project / "pyproject.toml").is_file():
        raise ClusterError(
            f"no project to build a wheel from in {project}",
            "run it from the repository, or say `install: {url: …}` in the spec",
        )
    with tempfile.TemporaryDirectory() as name:
        command = [
            sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", name,
            str(project),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(name).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise ClusterError(f"the wheel did not build: {done.stderr.strip()[-500:]}")
        # Old wheels go: `pip install *.whl` on a node must find exactly one.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        return Path(shutil.copy(wheels[0], target))
