"""What a gateway is told by its environment: a token provider, OpenAI-compatible servers, an open address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import jwt
import openai
import pytest
import tritonclient.grpc as triton
from cryptography.hazmat.primitives.asymmetric import rsa
from serving_kit import WIDTH, register_scale, wait_for, write_deployment, x_body

from sundog.rayapi.local import LocalRay, free_ports

pytestmark = pytest.mark.slow


class Outside(BaseHTTPRequestHandler):
    """The provider's keys and an OpenAI-compatible server, at one address."""

    keys: dict = {}
    asked: list = []

    def do_GET(self):
        self.say(self.keys)

    def do_POST(self):
        document = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((dict(self.headers), document))
        row = {"object": "embedding", "index": 0, "embedding": [0.25]}
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        self.say({"object": "list", "data": [row], "model": "m", "usage": usage})

    def say(self, document):
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(Ray, a token, one for everything) with one service, on an address that others reach."""
    private = rsa.generate_private_key(65537, 2048)
    made = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    Outside.keys = {"keys": [{**made, "kid": "k", "alg": "RS256"}]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Outside)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{server.server_port}"
    oidc = {"issuer": "https://login.example", "audience": "sundog", "jwks_url": f"{where}/keys"}
    claims = {"iss": "https://login.example", "aud": "sundog", "sub": "ann",
              "exp": time.time() + 900, "sundog_services": ["outside", "chat"]}  # fmt: skip
    token = jwt.encode(claims, private, "RS256", headers={"kid": "k"})
    claims["sundog_services"] = "*"
    whole = jwt.encode(claims, private, "RS256", headers={"kid": "k"})
    tmp = tmp_path_factory.mktemp("outside")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUNDOG_OIDC", json.dumps(oidc))
        patch.setenv("SUNDOG_UPSTREAMS", json.dumps({"chat": {"url": f"{where}/v1"}}))
        ray = LocalRay(
            f"file://{tmp}/root", num_cpus=2, object_store_bytes=256 * 2**20,
            gateway=f"http://0.0.0.0:{free_ports(1)[0]}",
            token_path=Path(os.environ["RAY_AUTH_TOKEN_PATH"]),
        )  # fmt: skip
        with ray:
            register_scale(ray.endpoints.root, "outside-scale", 2.0, tmp)
            file = write_deployment(
                tmp / "d.yaml", {"service": "outside", "model": "outside-scale@champion"}
            )
            said = sundog(ray, "deploy", file, "--wait", "0")
            assert said.returncode == 0, said.stderr
            yield ray, token, whole
    server.shutdown()


def sundog(ray, *words):
    return subprocess.run(
        [sys.executable, "-m", "sundog", *map(str, words)],
        env=ray.environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def url(ray, path):
    return ray.endpoints.gateway.replace("0.0.0.0", "127.0.0.1") + path


def test_a_token_opens_every_protocol_and_nothing_else_does(world):
    ray, token, _ = world
    headers = {"authorization": f"Bearer {token}"}
    infer = url(ray, "/v2/models/outside/infer")
    body = x_body([[1.0] * WIDTH])

    def answered():
        return httpx.post(infer, json=body, headers=headers, timeout=30, trust_env=False).is_success

    wait_for("an answer to the token", answered)
    assert httpx.post(infer, json=body, trust_env=False).status_code == 401
    bad = {"authorization": f"Bearer {token[:-6]}AAAAAA"}
    assert httpx.post(infer, json=body, headers=bad, trust_env=False).status_code == 401
    with triton.InferenceServerClient(ray.endpoints.gateway_grpc) as client:
        assert client.get_model_metadata("outside", headers=headers).name == "outside"
        with pytest.raises(triton.InferenceServerException, match="token of its provider"):
            client.get_model_metadata("outside")


def test_an_upstream_is_asked_with_our_limits_and_without_our_token(world):
    ray, token, whole = world
    with openai.OpenAI(base_url=url(ray, "/v1"), api_key=token, max_retries=0) as client:
        answer = client.embeddings.create(model="chat", input="x", encoding_format="float")
    assert answer.data[0].embedding == [0.25]
    assert token not in str(Outside.asked)
    status, text = 0, ""
    for each in (token, whole):
        headers = {"authorization": f"Bearer {each}"}
        answer = httpx.get(url(ray, "/metrics"), headers=headers, trust_env=False)
        status, text = status or answer.status_code, answer.text
    assert status == 403, "it tells of all services"
    assert 'sundog_gateway_tokens_total{service="chat",key="jwt",kind="input"} 7' in text
    paths = httpx.get(url(ray, "/openapi.json"), trust_env=False).json()["paths"]
    assert "/v1/chat/completions" in paths
