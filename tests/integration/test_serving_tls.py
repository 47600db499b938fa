"""A gateway whose address is https: HTTP, gRPC and our own commands, on a real Serve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from certificates import Authority
from serving_kit import WIDTH, register_scale, serve_cli, wait_for, write_deployment, x_body

from sundog.rayapi.local import LocalRay, free_ports
from sundog.security.tls import client_context

pytestmark = pytest.mark.timeout(300)
ALONE = pytest.param(1, marks=pytest.mark.long, id="alone")
BEHIND = pytest.param(2, marks=pytest.mark.slow, id="behind-the-edge")


@pytest.fixture(scope="module", params=[ALONE, BEHIND])
def world(request, tmp_path_factory):
    """(Ray, its address, the authority's file), with one service."""
    tmp = tmp_path_factory.mktemp("tls")
    authority = Authority(tmp)
    certificate = authority.issue("gate")
    told = {"SUNDOG_TLS_CERT": str(certificate.chain), "SUNDOG_TLS_KEY": str(certificate.key)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        ray = LocalRay(
            f"file://{tmp}/root", num_cpus=2, object_store_bytes=256 * 2**20,
            gateway=f"https://127.0.0.1:{free_ports(1)[0]}", gateways=request.param,
            token_path=Path(os.environ["RAY_AUTH_TOKEN_PATH"]),
        )  # fmt: skip
        with ray:
            register_scale(ray.endpoints.root, "tls-scale", 2.0, tmp)
            spec = {"service": "scale", "model": "tls-scale@champion"}
            serve_cli(ray, "deploy", write_deployment(tmp / "d.yaml", spec))
            yield ray, ray.endpoints.gateway, authority.file


def test_everything_that_asks_a_gateway_speaks_tls(world):
    ray, address, trusted = world
    with httpx.Client(verify=client_context({"SUNDOG_TLS_CA": str(trusted)})) as client:

        def ready():
            try:
                return client.get(f"{address}/v2/models/scale/ready").status_code == 200
            except httpx.ConnectError:
                return False

        wait_for("the service", ready)
        answer = client.post(f"{address}/v2/models/scale/infer", json=x_body([[1.0] * WIDTH]))
        assert answer.json()["outputs"][0]["data"] == [2.0] * WIDTH
    # Nobody is answered in the clear, or believed without the authority.
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{address}/v2/health/live", trust_env=False)
    plain = address.replace("https://", "http://")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{plain}/v2/health/live", trust_env=False)

    values = np.ones((3, WIDTH), np.float32)
    asked = triton.InferInput("x", list(values.shape), "FP32")
    asked.set_data_from_numpy(values)
    where = ray.endpoints.gateway_grpc
    with triton.InferenceServerClient(where, ssl=True, root_certificates=str(trusted)) as client:
        np.testing.assert_array_equal(client.infer("scale", [asked]).as_numpy("y"), values * 2)
    with triton.InferenceServerClient(where) as client, pytest.raises(triton.InferenceServerException):  # fmt: skip  # noqa: E501
        client.infer("scale", [asked], client_timeout=5)

    def sundog(*words, **more):
        return subprocess.run(
            [sys.executable, "-m", "sundog", *words], capture_output=True, text=True, timeout=120,
            env=ray.environment() | {"RAY_ADDRESS": ray.endpoints.gcs} | more, check=False,
        )  # fmt: skip

    listed = sundog("services", SUNDOG_TLS_CA=str(trusted))
    assert listed.returncode == 0, listed.stderr
    assert "scale" in listed.stdout
    refused = sundog("services")
    assert refused.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert "SUNDOG_TLS_CA" in refused.stderr
    drilled = sundog("drill", "service", "scale", "--yes", SUNDOG_TLS_CA=str(trusted))
    assert drilled.returncode == 0, drilled.stderr
    assert "requests failed" in drilled.stdout
