"""The scaling policy in Ray Serve's own autoscaler: a load step brings a second replica."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serve_reaction.py"


def test_a_load_step_starts_a_second_replica_and_fails_nothing(local_ray):
    # In a process of its own: this one stays free of a Ray connection.
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--inside", "sundog"],
        env={**local_ray.environment(), "RAY_ADDRESS": local_ray.endpoints.gcs},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["second_replica_starts_s"] is not None
    assert result["second_replica_answers_s"] is not None
    assert result["failed"] == 0
    assert result["answered"] > 16
