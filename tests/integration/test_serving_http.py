"""The Open Inference Protocol over HTTP, on a real Serve: what is right, and what each fault gets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from serving_kit import (
    WIDTH,
    register_around,
    register_python,
    register_scale,
    serve_cli,
    serve_status,
    wait_for,
    wait_ready,
    write_deployment,
    x_body,
)

from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.signature import Signature, TensorSpec

TOLD = """
import os
import numpy as np

class Told:
    def predict(self, inputs):
        words = os.environ["WORD"], os.environ["TOKEN"]
        return {"y": np.array([w.encode() for w in words], dtype=object)}
"""


def register_told(root_url, folder):
    """Answers with what its environment holds."""
    source = folder / "told-src"
    source.mkdir()
    (source / "told.py").write_text(TOLD)
    (folder / "token").write_text("from-a-file\n")
    signature = Signature((TensorSpec("x", "FP64", (-1,)),), (TensorSpec("y", "BYTES", (2,)),))
    Registry(open_root(root_url)).import_python("http-told", source, "told:Told", signature)


@pytest.fixture(scope="module")
def gateway(local_ray, tmp_path_factory):
    """`serve deploy` of a good exported model, a python model, and one whose model is not there."""
    tmp = tmp_path_factory.mktemp("http")
    root = local_ray.endpoints.root
    register_scale(root, "http-scale", 2.0, tmp)
    register_python(root, "http-odd", tmp)
    register_told(root, tmp)
    register_around(root, "http-around", tmp)
    file = write_deployment(
        tmp / "d.yaml",
        {"service": "scale", "model": "http-scale@champion", "max_body": "64KiB"},
        {"service": "odd", "model": "http-odd@champion", "allow_code": True},
        {
            "service": "words",
            "model": "http-scale@champion",
            "process": "http-around@1",
            "allow_code": True,
        },
        {"service": "locked", "model": "http-odd@champion"},
        {"service": "ghost", "model": "http-scale@nobody"},
        {
            "service": "told",
            "model": "http-told@1",
            "allow_code": True,
            "env": {"WORD": "hello"},
            "secrets": {"TOKEN": f"file:{tmp / 'token'}"},
        },
        {
            "service": "untold",
            "model": "http-told@1",
            "allow_code": True,
            "secrets": {"TOKEN": "env:NOBODY_SET_THIS"},
        },
    )
    serve_cli(local_ray, "deploy", file)
    address = local_ray.endpoints.gateway
    wait_ready(address, "scale")
    wait_for("odd ready", lambda: get(address, "/v2/models/odd/ready").status_code == 200)
    yield address
    serve_cli(local_ray, "deploy", write_empty(tmp))
    wait_for("undeployed", lambda: get(address, "/v2/models/scale").status_code == 404)


def write_empty(folder):
    path = folder / "empty.yaml"
    path.write_text("proxy_location: Disabled\napplications: []\n")
    return path


def get(address, path, **kwargs):
    return httpx.get(address + path, timeout=15, trust_env=False, **kwargs)


def post(address, path, **kwargs):
    return httpx.post(address + path, timeout=30, trust_env=False, **kwargs)


def test_health_and_server_metadata(gateway):
    assert get(gateway, "/v2/health/live").json() == {"live": True}
    assert get(gateway, "/v2/health/ready").json() == {"ready": True}
    server = get(gateway, "/v2").json()
    assert server["name"] == "sundog"
    assert isinstance(server["extensions"], list)


def test_a_service_finds_its_environment_and_its_secrets(gateway):
    wait_for("told ready", lambda: get(gateway, "/v2/models/told/ready").status_code == 200)
    x = {"name": "x", "datatype": "FP64", "shape": [1], "data": [0.0]}
    answer = post(gateway, "/v2/models/told/infer", json={"inputs": [x]}).json()
    assert answer["outputs"][0]["data"] == ["hello", "from-a-file"]


def test_what_is_done_around_a_model_is_what_clients_see(gateway, local_ray):
    wait_for("words ready", lambda: get(gateway, "/v2/models/words/ready").status_code == 200)
    described = get(gateway, "/v2/models/words").json()
    assert [t["name"] for t in described["inputs"] + described["outputs"]] == ["text", "words"]
    answer = post(gateway, "/predict/words", json={"text": "1 2 3 4"})
    assert answer.json() == {"words": "2 4 6 8"}
    wrong = post(gateway, "/predict/words", json={"text": "one"})
    assert (wrong.status_code, "could not convert" in wrong.text) == (400, True)
    held = Registry(open_root(local_ray.endpoints.root)).holds("http-around", 1)
    assert any("words" in holder for holder in held)


def test_a_model_that_is_served_cannot_be_deleted(gateway, local_ray):
    wait_for("told ready", lambda: get(gateway, "/v2/models/told/ready").status_code == 200)
    answer = subprocess.run(
        [Path(sys.executable).parent / "sundog", "models", "delete", "http-told@1", "--yes"],
        env=local_ray.environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer.returncode != 0
    assert "told" in answer.stderr
    assert Registry(open_root(local_ray.endpoints.root)).get("http-told@1").version == 1


def test_a_secret_that_is_not_there_is_named(gateway):
    def said():
        rows = {r["service"]: r for r in get(gateway, "/sundog/services").json()}
        return rows["untold"]["message"]

    wait_for("the reason", lambda: "secrets.TOKEN: env:NOBODY_SET_THIS is not there" in said())


@pytest.mark.parametrize("at", ["", "/versions/1"])
def test_model_metadata_and_readiness(gateway, at):
    document = get(gateway, f"/v2/models/scale{at}").json()
    assert document["name"] == "scale"
    assert document["versions"] == ["1"]
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, WIDTH]}]
    assert document["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, WIDTH]}]
    ready = get(gateway, f"/v2/models/scale{at}/ready")
    assert (ready.status_code, ready.json()) == (200, {"name": "scale", "ready": True})


@pytest.mark.parametrize("at", ["", "/versions/1"])
def test_infer(gateway, at):
    rows = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 8.0]]
    answer = post(gateway, f"/v2/models/scale{at}/infer", json=x_body(rows, id="mine-1"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model_name": "scale", "model_version": "1", "id": "mine-1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 4],
                     "data": [2.0, 4.0, 6.0, 8.0, 1.0, 0.0, -2.0, 16.0]}],
    }  # fmt: skip


def test_the_request_id_is_echoed_or_made(gateway):
    body = json.dumps(x_body([[0.0] * WIDTH]))
    path = "/v2/models/scale/infer"
    assert post(gateway, path, content=body, headers={"x-request-id": "abc-1"}).headers[
        "x-request-id"
    ] == "abc-1"  # fmt: skip
    made = {post(gateway, path, content=body).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


def test_a_python_model_where_the_service_allows_code(gateway):
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 2], "data": [1, 2]}]}
    outputs = {
        o["name"]: o for o in post(gateway, "/v2/models/odd/infer", json=body).json()["outputs"]
    }
    assert outputs["y"]["data"] == [2.0, 3.0]
    assert outputs["word"] == {"name": "word", "datatype": "BYTES", "shape": [1], "data": ["café"]}
    body["inputs"][0]["data"] = [-1, 2]
    failed = post(gateway, "/v2/models/odd/infer", json=body)
    assert failed.status_code == 500
    assert "ValueError: no negative numbers here" in failed.json()["error"]


def one(**change):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [0.0] * WIDTH}
    return json.dumps({"inputs": [tensor | change]}).encode()


BAD = [
    ("/v2/models/scal/infer", one(), 404, "did you mean 'scale'"),
    ("/v2/models/scale/versions/9/infer", one(), 404, "version '9' of 'scale' is not served; served: 1"),
    ("/v2/models/scale/infer", one(shape=[1, 5]), 400, "shape [1, 5], the model takes [-1, 4]"),
    ("/v2/models/scale/infer", one(datatype="FP64"), 400, "is FP32, the request says 'FP64'"),
    ("/v2/models/scale/infer", one(name="z"), 400, "no input 'z'"),
    ("/v2/models/scale/infer", b'{"inputs": []}', 400, "'x' is missing"),
    ("/v2/models/scale/infer", one(data=[0.0]), 400, "1 values, the shape says 4"),
    ("/v2/models/scale/infer", b"{nonsense", 400, "not JSON"),
    ("/v2/models/scale/infer", b"", 400, "not JSON"),
    ("/v2/models/scale/infer", b"\xff\xfe\xfd", 400, "not JSON"),
    ("/v2/models/scale/infer", b" " * (65 * 1024), 413, "max_body"),
    ("/v2/models/scale/infer", b" " * (5 << 20), 413, "max_body"),
    ("/v2/models/scale/explode", one(), 404, "nothing at"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "says"), BAD)
def test_faults_of_the_client(gateway, path, body, status, says):
    answer = post(gateway, path, content=body)
    assert answer.status_code == status
    assert says in answer.json()["error"]
    assert answer.headers["x-request-id"]


def test_an_oversized_body_without_a_length_is_refused_too(gateway):
    answer = post(gateway, "/v2/models/scale/infer", content=(b" " * 8192 for _ in range(20)))
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/scale/infer", "POST"), ("PUT", "/v2/models/scale/infer", "POST"),
        ("POST", "/v2/models/scale", "GET"), ("DELETE", "/v2/models/scale/ready", "GET"),
        ("POST", "/v2/health/live", "GET"), ("POST", "/v2", "GET"),
    ],
)  # fmt: skip
def test_wrong_methods(gateway, method, path, allowed):
    answer = httpx.request(method, gateway + path, timeout=10, trust_env=False)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert answer.json()["error"]


@pytest.mark.parametrize("path", ["/nowhere", "/v2/nowhere", "/v1/chat/completions"])
def test_unknown_paths_get_json(gateway, path):
    answer = get(gateway, path)
    assert answer.status_code == 404
    assert "nothing at" in answer.json()["error"]


def test_services_and_docs_are_there_for_people(gateway):
    rows = {r["service"]: r for r in get(gateway, "/sundog/services").json()}
    assert rows["scale"]["state"] == "ready"
    assert rows["scale"]["versions"] == [
        {"version": "1", "ready": True, "replicas": 1, "queued": 0}
    ]
    assert "swagger" in get(gateway, "/docs").text.lower()


def test_a_service_that_cannot_start_says_why_and_stops_nobody(gateway, local_ray):
    def refused():
        rows = {r["service"]: r for r in get(gateway, "/sundog/services").json()}
        return rows["locked"]["state"] == "failed" and rows["locked"]["message"]

    message = wait_for("locked failed", refused)
    assert "allow_code" in message
    answer = post(gateway, "/v2/models/locked/infer", content=b"{}")
    assert (answer.status_code, "allow_code" in answer.json()["error"]) == (503, True)
    ghost = serve_status(local_ray)["ghost"]
    assert ghost["status"] == "DEPLOY_FAILED"
    assert "http-scale" in ghost["message"]
    assert "nobody" in ghost["message"]
    assert get(gateway, "/v2/models/scale/ready").status_code == 200


def raw(gateway, data, answers=1):
    """What the gateway sends for bytes as they are, up to a number of responses."""
    address = urlsplit(gateway)
    with socket.create_connection((address.hostname, address.port), timeout=15) as connection:
        connection.sendall(data)
        got = b""
        while got.count(b"HTTP/1.1 ") < answers or not got.endswith(b"}"):
            part = connection.recv(65536)
            if not part:
                break
            got += part
    return got


def request_bytes(body):
    return (
        b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        + body
    )


def test_pipelined_requests_are_answered_in_order(gateway):
    bodies = [json.dumps(x_body([[float(i)] * WIDTH], id=f"r{i}")).encode() for i in range(3)]
    got = raw(gateway, b"".join(map(request_bytes, bodies)), answers=3)
    assert [got.find(b'"r%d"' % i) for i in range(3)] == sorted(
        got.find(b'"r%d"' % i) for i in range(3)
    )
    assert got.count(b"HTTP/1.1 200") == 3


def test_a_chunked_body(gateway):
    body = json.dumps(x_body([[1.0] * WIDTH])).encode()
    halves = body[:20], body[20:]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(h), h) for h in halves) + b"0\r\n\r\n"
    got = raw(
        gateway,
        b"POST /v2/models/scale/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunks,
    )
    assert got.startswith(b"HTTP/1.1 200")
    assert b'"data":[2.0,2.0,2.0,2.0]' in got


def test_bytes_that_are_no_http_are_refused(gateway):
    assert raw(gateway, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")
