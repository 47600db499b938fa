"""Ray's own store of what there is (the GCS) is away for a minute: who was served is served on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from serving_kit import (
    infer,
    load,
    register_scale,
    serve_cli,
    wait_for,
    wait_ready,
    write_deployment,
)

from sundog.rayapi.local import LocalRay

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
AWAY_S = 60.0


@pytest.fixture
def own_ray(tmp_path) -> Iterator[LocalRay]:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    root = (tmp_path / "root").as_uri()
    with LocalRay(root, num_cpus=2, object_store_bytes=256 * 2**20, token_path=token) as ray:
        yield ray


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """It is there, keeps its connections, and says nothing."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_serving_goes_on_with_the_last_known_replicas_while_the_gcs_is_away(own_ray, tmp_path):
    root, gateway = own_ray.endpoints.root, own_ray.endpoints.gateway
    register_scale(root, "scale", 2.0, tmp_path)
    spec = {"service": "s", "model": "scale@champion", "replicas": 2}
    serve_cli(own_ray, "deploy", write_deployment(tmp_path / "d.yaml", spec))
    wait_ready(gateway, "s")
    [gcs] = [p for p in own_ray.processes() if p.name() == "gcs_server"]
    with load(gateway, "s", {"1": 2.0, "2": 3.0}) as seen:
        wait_for("load", lambda: seen.total > 100)
        with stopped(gcs):
            end = time.monotonic() + AWAY_S
            while time.monotonic() < end:
                count = seen.total
                wait_for("answers go on", lambda count=count: seen.total > count + 50)
        # It is back, and Ray with it: what comes new is deployed, while the old one answers.
        register_scale(root, "scale", 3.0, tmp_path)
        wait_for("the new version answers", lambda: seen.answers.get("2", 0) > 50)
    assert seen.failures == []
    assert infer(gateway, "s", [[1.0] * 4]) == ("2", [3.0] * 4)
