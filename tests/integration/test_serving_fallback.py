"""The public way to replicas, over Serve's handle, passes what the private sockets pass: slower."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest
from serving_kit import (
    WIDTH,
    infer,
    load,
    processes,
    register_scale,
    register_stream,
    serve_cli,
    wait_for,
    wait_ready,
    write_deployment,
    x_body,
)

from sundog.rayapi.local import LocalRay

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def handle_ray(tmp_path_factory):
    root = tmp_path_factory.mktemp("handle-root")
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    os.environ["SUNDOG_DATA_PATH"] = "handle"
    try:
        with LocalRay(
            f"file://{root}", num_cpus=2, object_store_bytes=256 * 2**20, token_path=token
        ) as ray:
            yield ray
    finally:
        del os.environ["SUNDOG_DATA_PATH"]


def test_the_same_behaviour_over_the_handle(handle_ray, tmp_path):
    register_scale(handle_ray.endpoints.root, "h-scale", 2.0, tmp_path)
    spec = {"service": "h", "model": "h-scale@champion", "replicas": 2}
    serve_cli(handle_ray, "deploy", write_deployment(tmp_path / "d.yaml", spec))
    gateway = handle_ray.endpoints.gateway
    wait_ready(gateway, "h")
    assert infer(gateway, "h", [[1.0] * WIDTH]) == ("1", [2.0] * WIDTH)
    wrong = httpx.post(f"{gateway}/v2/models/h/infer", json={"inputs": []}, trust_env=False)
    assert wrong.status_code == 400
    with load(gateway, "h", {"1": 2.0, "2": 3.0}) as seen:
        wait_for("load", lambda: seen.total > 20)
        register_scale(handle_ray.endpoints.root, "h-scale", 3.0, tmp_path)
        wait_for("the new version answers", lambda: seen.answers.get("2", 0) > 20)
    assert seen.failures == []
    with load(gateway, "h", {"2": 3.0}) as seen:
        replicas = processes(handle_ray, "ServeReplica:h--v2:Model")
        os.kill(replicas[0].pid, signal.SIGKILL)
        count = seen.total
        wait_for("answers go on", lambda: seen.total > count + 20)
    assert seen.failures == []
    big = httpx.post(
        f"{gateway}/v2/models/h/infer",
        json=x_body([[1.0] * WIDTH] * 5000), timeout=60, trust_env=False,
    )  # fmt: skip
    assert big.json()["outputs"][0]["shape"] == [5000, WIDTH]


def test_parts_travel_over_the_handle_and_end_with_their_client(handle_ray, tmp_path):
    register_stream(handle_ray.endpoints.root, "h-words", tmp_path)
    spec = {"service": "words", "model": "h-words@champion", "allow_code": True}
    file = write_deployment(tmp_path / "w.yaml", spec)
    serve_cli(handle_ray, "deploy", file)
    gateway = handle_ray.endpoints.gateway
    ready = f"{gateway}/v2/models/words/ready"
    wait_for("words ready", lambda: httpx.get(ready, trust_env=False).is_success)
    url = f"{gateway}/v2/models/words/generate_stream"
    whole = httpx.post(url, json={"text_input": "to be"}, timeout=30, trust_env=False)
    assert [line.partition('"text_output":')[2] for line in whole.text.split("\n\n")[:2]] == [
        '"to"}', '"be"}',
    ]  # fmt: skip
    mark = tmp_path / "ended"
    body = {"text_input": f"forever {mark}"}
    with httpx.stream("POST", url, json=body, timeout=30, trust_env=False) as answer:
        assert "tick" in next(answer.iter_lines())
    wait_for("the model was ended", mark.exists, 30)
