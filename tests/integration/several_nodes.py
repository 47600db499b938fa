"""Tests with a Ray of several nodes: each in a process of its own.

Ray's switch that keeps it on loopback, which all other tests use, forbids a second node, and Ray
reads it once, when it is first imported. So such a test runs its own file as a script.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_alone(file: str, *arguments: str, limit_s: float = 500) -> str:
    """What the file printed as a script, called with `arguments`; the last one is its folder."""
    several = {k: v for k, v in os.environ.items() if k != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    done = subprocess.run(
        [sys.executable, file, *arguments], env=several, capture_output=True, text=True,
        cwd=Path(arguments[-1]) if arguments else None, timeout=limit_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
