"""Replicas follow what a real Prometheus says of them, scraped from Ray's own metrics."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rollout_kit import row, steady
from serving_kit import serve_status, wait_for, wait_ready, write_deployment

from sundog.control import serve_files
from sundog.rayapi.local import LocalRay
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.signature import Signature, TensorSpec

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Debian's prometheus"),
]

BUSY = """
import time

class Busy:
    def predict(self, inputs):
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        return {"y": inputs["x"]}
"""


@contextlib.contextmanager
def prometheus(folder, discovery, port):
    config = {
        "global": {"scrape_interval": "2s"},
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [str(discovery)]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    server = subprocess.Popen(
        ["prometheus", f"--config.file={folder}/prometheus.yml",
         f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=(folder / "prometheus.log").open("wb"),
    )  # fmt: skip
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def test_replicas_follow_the_cores_they_use(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_PROMETHEUS_HOST", f"http://127.0.0.1:{port}")
    root, source = f"file://{tmp_path}/root", tmp_path / "busy"
    source.mkdir()
    (source / "busy.py").write_text(BUSY)
    x, y = (TensorSpec(name, "FP32", (-1, 1)) for name in "xy")
    Registry(open_root(root)).import_python(
        "busy", source, "busy:Busy", Signature((x,), (y,)), alias="champion"
    )
    spec = {
        "service": "busy", "model": "busy@champion", "allow_code": True, "replicas": "1..3",
        "signals": [{"name": "cpu", "target": 0.1}],
    }  # fmt: skip
    file = write_deployment(tmp_path / "busy.yaml", spec)
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])  # a process can know only one
    with LocalRay(root, num_cpus=2, object_store_bytes=256 * 2**20, token_path=token) as ray:
        gateway = ray.endpoints.gateway
        serve_files.deploy_file(file, ray.endpoints.dashboard)
        wait_ready(gateway, "busy")
        discovery = ray.temp_dir / "prom_metrics_service_discovery.json"
        with prometheus(tmp_path, discovery, port), steady(gateway, "busy", rate=10, clients=2):
            # A fifth of a core at a target of a tenth: requests alone would ask for one replica.
            wait_for("replicas for the cores", lambda: target(ray) >= 2, 150)
            wait_for("they came", lambda: row(gateway, "busy")["replicas"] >= 2, 90)
            wait_for("it says so", lambda: "cpu at" in said(ray), 90)


def target(ray):
    return serve_status(ray)["busy--v1"]["deployments"]["Model"]["target_num_replicas"]


def said(ray):
    """Why the service has the replicas that it has."""
    command = [str(Path(sys.executable).parent / "sundog"), "service", "show", "busy"]
    environment = {
        **ray.environment(), "RAY_ADDRESS": ray.endpoints.gcs,
        "SUNDOG_GATEWAY": ray.endpoints.gateway,
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr
