"""A real Ray for the integration tests: one a session, own ports, own temp dir, loopback only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sundog.rayapi.local import LocalRay


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory):
    """A running head node with job submission. `local_ray.environment()` is what its CLIs need.

    Its storage root is `local_ray.endpoints.root`. CPUs are logical: four, so that tests that share
    it do not wait for each other.
    """
    root = tmp_path_factory.mktemp("root")
    ray = LocalRay(
        f"file://{root}",
        num_cpus=4,
        object_store_bytes=256 * 2**20,
        token_path=Path(os.environ["RAY_AUTH_TOKEN_PATH"]),
    )
    with ray:
        yield ray
