"""Clients that nobody here wrote, keys, plain JSON and what operators read, on a real Serve."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from serving_kit import (
    WIDTH,
    ask_control,
    three_kinds,
    wait_for,
    write_deployment,
    x_body,
)

from sundog.control import serve_files
from sundog.storage.models import Registry
from sundog.storage.programs import export_program
from sundog.storage.root import open_root

REPO = Path(__file__).parents[2]
ROWS = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture(scope="module")
def gateway(local_ray, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("clients")
    with three_kinds(local_ray, "clients", tmp, max_body="64MiB") as address:
        yield address


def post(address, path, **kwargs):
    return httpx.post(address + path, timeout=30, trust_env=False, **kwargs)


@pytest.fixture
def triton(gateway):
    client = pytest.importorskip(
        "tritonclient.http", reason="tritonclient[http] is not installed (pip install it to run)"
    )
    made = client.InferenceServerClient(gateway.removeprefix("http://"))
    yield client, made
    made.close()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_tritons_client_infers(triton, binary, packing):
    module, client = triton
    values = np.arange(400 * WIDTH, dtype=np.float32).reshape(400, WIDTH)
    tensor = module.InferInput("x", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    result = client.infer(
        "scale", [tensor], request_id="t-1", model_version="1",
        outputs=[module.InferRequestedOutput("y", binary_data=binary)],
        request_compression_algorithm=packing, response_compression_algorithm=packing,
    )  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("y"), values * 2)
    assert result.get_response()["id"] == "t-1"


KSERVE = REPO / "build/peers/kserve/bin/python"
KSERVES_CLIENT = """
import asyncio, json, sys
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig

async def ask(address):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    said = [await client.is_server_live(address), await client.is_server_ready(address)]
    said += [await client.is_model_ready(address, name) for name in ("scale", "nobody")]
    for binary in (False, True):
        x = InferInput("x", [2, 4], "FP32")
        x.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4), binary_data=binary)
        request = InferRequest(model_name="scale", infer_inputs=[x])
        answer = await client.infer(address, request, model_name="scale")
        said.append(answer.outputs[0].as_numpy().tolist())
    print(json.dumps(said))

asyncio.run(ask(sys.argv[1]))
"""


@pytest.mark.skipif(not KSERVE.exists(), reason="KServe's client is not there: make bench-peers")
def test_kserves_client_asks_for_health_and_infers(gateway):
    """In an environment of its own: its requirements exclude ours."""
    done = subprocess.run(
        [str(KSERVE), "-c", KSERVES_CLIENT, gateway], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    twice = [[0.0, 2.0, 4.0, 6.0], [8.0, 10.0, 12.0, 14.0]]
    assert json.loads(done.stdout.splitlines()[-1]) == [True, True, True, False, twice, twice]


def test_tritons_client_gets_strings_and_integers(triton):
    module, client = triton
    values = np.array([[1.0, 2.0]])
    tensor = module.InferInput("x", [1, 2], "FP64")
    tensor.set_data_from_numpy(values)
    result = client.infer("odd", [tensor])
    np.testing.assert_array_equal(result.as_numpy("y"), values + 1)
    assert result.as_numpy("word").tolist() == ["café".encode()]
    assert result.as_numpy("pid").dtype == np.int64


def test_tritons_client_asks_everything_else(triton):
    module, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "1")
    assert not client.is_model_ready("nobody")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("scale")["inputs"][0]["name"] == "x"
    assert client.get_model_config("scale")["max_batch_size"] == 64
    index = {m["name"]: m["state"] for m in client.get_model_repository_index()}
    assert index["scale"] == "READY"
    before = client.get_inference_statistics("scale")["model_stats"][0]["inference_count"]
    tensor = module.InferInput("x", [3, WIDTH], "FP32")
    tensor.set_data_from_numpy(np.zeros((3, WIDTH), np.float32))
    client.infer("scale", [tensor])
    after = client.get_inference_statistics("scale")["model_stats"][0]["inference_count"]
    assert after == before + 3
    with pytest.raises(module.InferenceServerException, match="no service 'nobody'"):
        client.infer("nobody", [tensor])


def test_a_large_tensor_and_no_rows_at_all(triton):
    module, client = triton
    for rows in (200_000, 0):
        values = np.ones((rows, WIDTH), np.float32)
        tensor = module.InferInput("x", [rows, WIDTH], "FP32")
        tensor.set_data_from_numpy(values)
        assert client.infer("scale", [tensor]).as_numpy("y").shape == (rows, WIDTH)


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_requests(gateway, name, pack):
    body = pack(json.dumps(x_body(ROWS)).encode())
    answer = post(
        gateway, "/v2/models/scale/infer", content=body, headers={"content-encoding": name}
    )
    assert answer.json()["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]
    bomb = pack(b" " * (65 * 2**20))
    refused = post(
        gateway, "/v2/models/scale/infer", content=bomb, headers={"content-encoding": name}
    )
    assert refused.status_code == 413


def test_plain_json(gateway):
    assert post(gateway, "/predict/scale", json={"x": ROWS[0]}).json() == {
        "y": [2.0, 4.0, 6.0, 8.0]
    }
    assert post(gateway, "/predict/scale", json={"x": ROWS * 2}).json() == {
        "y": [[2.0, 4.0, 6.0, 8.0]] * 2
    }
    refused = post(gateway, "/predict/scale", json={"z": 1})
    assert (refused.status_code, "no field 'z'" in refused.json()["error"]) == (400, True)


def events(address, path, **kwargs):
    """(headers, decoded events) of a whole event stream."""
    with httpx.stream("POST", address + path, timeout=30, trust_env=False, **kwargs) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines), lines
    return answer, [json.loads(line[6:]) for line in lines]


def test_parts_are_streamed_as_events(gateway):
    path = "/v2/models/words/generate_stream"
    answer, parts = events(gateway, path, json={"text_input": "to be or", "id": "g-1"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    head = {"model_name": "words", "model_version": "1", "id": "g-1"}
    assert parts == [head | {"text_output": w} for w in ("to", "be", "or")]
    _, parts = events(gateway, "/predict/words", json={"text_input": "not to"})
    assert parts == [{"text_output": "not"}, {"text_output": "to"}]
    _, parts = events(
        gateway, "/predict/scale", json={"x": ROWS[0]}, headers={"accept": "text/event-stream"}
    )
    assert parts == [{"y": [2.0, 4.0, 6.0, 8.0]}]


def test_a_language_model_writes_on_in_parts(gateway, local_ray, tmp_path):
    sys.path.insert(0, str(REPO))
    from jobs.examples.writer.register import register
    from jobs.recipes.gpt import Gpt

    root, recipe = open_root(local_ray.endpoints.root), Gpt(context=16, width=8, depth=1, heads=2)
    torch.manual_seed(0)
    signature = export_program(recipe.model().eval(), recipe.example_inputs(), tmp_path / "m.pt2")
    Registry(root).import_export("clients-gpt", tmp_path / "m.pt2", signature)
    assert register(root, "clients-gpt@1").ref == "clients-gpt-writer@1"
    spec = {"service": "writer", "model": "clients-gpt-writer@champion", "allow_code": True}
    serve_files.deploy_file(
        write_deployment(tmp_path / "w.yaml", spec), local_ray.endpoints.dashboard
    )
    url = f"{gateway}/v2/models/writer/ready"
    wait_for("writer ready", lambda: httpx.get(url, trust_env=False).is_success)
    path, text = "/v2/models/writer/generate_stream", {"text_input": "The with statement"}
    answer, parts = events(gateway, path, json=text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert 50 < len(parts) <= 200  # bytes that are no character of their own come together
    assert events(gateway, path, json=text)[1] == parts
    assert events(gateway, path, json={"text_input": "Else"})[1] != parts


def test_generate_answers_whole_and_says_where_parts_are(gateway):
    one = post(gateway, "/v2/models/words/generate", json={"text_input": "word"})
    assert one.json() == {"model_name": "words", "model_version": "1", "text_output": "word"}
    two = post(gateway, "/v2/models/words/generate", json={"text_input": "two words"})
    assert (two.status_code, "generate_stream" in two.json()["error"]) == (400, True)
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["word"]}
    whole = post(gateway, "/v2/models/words/infer", json={"inputs": [tensor]})
    assert (whole.status_code, "generate_stream" in whole.json()["error"]) == (400, True)


def test_faults_before_the_first_part_have_a_status_and_later_ones_are_events(gateway):
    path = "/v2/models/words/generate_stream"
    first = post(gateway, path, json={"text_input": "oops"})
    assert (first.status_code, "no such word" in first.json()["error"]) == (500, True)
    answer, seen = events(gateway, path, json={"text_input": "well oops"})
    assert (answer.status_code, seen[0]["text_output"]) == (200, "well")
    assert "no such word" in seen[1]["error"]
    wrong = post(gateway, path, json={"text_inptu": "x"})
    assert (wrong.status_code, "did you mean 'text_input'" in wrong.json()["error"]) == (400, True)
    assert post(gateway, path, json={"text_input": "x", "parameters": 3}).status_code == 400
    assert httpx.get(gateway + path, trust_env=False).status_code == 405


def test_a_client_that_leaves_ends_the_models_work(gateway, tmp_path):
    mark = tmp_path / "ended"
    path = "/v2/models/words/generate_stream"
    body = {"text_input": f"forever {mark}"}
    with httpx.stream("POST", gateway + path, json=body, timeout=30, trust_env=False) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines)[6:])["text_output"] == "tick"
        assert not mark.exists()
    wait_for("the model was ended", mark.exists, 20)


def test_metrics_and_the_access_log(gateway, local_ray):
    post(gateway, "/v2/models/scale/infer", json=x_body(ROWS), headers={"x-request-id": "find-me"})
    text = httpx.get(f"{gateway}/metrics", trust_env=False).text
    assert 'sundog_gateway_requests_total{service="scale",version="1",key="",status="200"}' in text
    assert 'sundog_gateway_replicas{service="scale",version="1"} 1' in text

    def logged():
        logs = local_ray.temp_dir.glob("session_*/logs/sundog-access-*.jsonl")
        lines = [json.loads(row) for path in logs for row in path.read_text().splitlines()]
        return [row for row in lines if row["id"] == "find-me"]

    row = wait_for("the line", logged)[-1]
    assert (row["service"], row["version"], row["status"]) == ("scale", "1", 200)


def test_captured_requests_are_read_back(gateway, local_ray):
    post(gateway, "/predict/odd", json={"x": [3.0, 4.0]}, headers={"x-request-id": "kept-1"})
    command = [sys.executable, "-m", "sundog", "service", "capture", "odd", "--json",
               "--root", local_ray.endpoints.root]  # fmt: skip

    def kept():
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [r for r in json.loads(done.stdout) if r["id"] == "kept-1"]

    [row] = wait_for("the row", kept)
    assert row["inputs"] == {"x": [[3.0, 4.0]]}
    assert row["outputs"]["y"] == [[4.0, 5.0]]
    assert "word" not in row["outputs"]
    metrics = httpx.get(f"{gateway}/metrics", trust_env=False).text
    assert 'sundog_gateway_captures_total{service="odd",outcome="kept"}' in metrics


def test_a_daily_quota_is_kept_by_control(gateway, local_ray):
    made = ask_control(local_ray, "create_key", name="few", scopes=["scale"], quota=5)
    headers = {"authorization": f"Bearer {made['key']}"}
    try:
        wait_for(
            "the gateway asks for keys",
            lambda: post(gateway, "/predict/scale", json={}).status_code == 401,
        )
        good = refused = 0

        def used_up():
            nonlocal good, refused
            answer = post(gateway, "/predict/scale", json={"x": ROWS[0]}, headers=headers)
            good += answer.status_code == 200
            refused += answer.status_code == 429
            assert answer.status_code in (200, 429), answer.text
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
            return "of today (UTC)" in answer.text

        wait_for("today's requests are used", used_up)
        assert good == 5

        def told():
            [row] = [r for r in ask_control(local_ray, "keys") if r["key_id"] == made["key_id"]]
            return row["used"] == {"requests": 5}

        wait_for("control knows", told)
    finally:
        ask_control(local_ray, "revoke_key", key_id=made["key_id"])
        ask_control(local_ray, "delete_key", key_id=made["key_id"])
    wait_for(
        "the gateway is open again",
        lambda: post(gateway, "/predict/scale", json={"x": ROWS[0]}).is_success,
    )


def test_keys_lock_the_gateway_and_leave_no_trace(gateway, local_ray):
    made = ask_control(local_ray, "create_key", name="me", scopes=["scale"], rate=20.0)
    try:
        locked = lambda: post(gateway, "/predict/scale", json={"x": ROWS[0]}).status_code == 401  # noqa: E731
        wait_for("the gateway asks for keys", locked)
        headers = {"authorization": f"Bearer {made['key']}"}
        good = post(gateway, "/predict/scale", json={"x": ROWS[0]}, headers=headers)
        assert good.json() == {"y": [2.0, 4.0, 6.0, 8.0]}
        assert post(gateway, "/predict/odd", json={}, headers=headers).status_code == 403
        assert httpx.get(f"{gateway}/metrics", trust_env=False).status_code == 401
        assert httpx.get(f"{gateway}/v2/health/live", trust_env=False).status_code == 200
        burst = [
            post(gateway, "/predict/scale", json={"x": ROWS[0]}, headers=headers) for _ in range(60)
        ]
        limited = [a for a in burst if a.status_code == 429]
        assert {a.status_code for a in burst} <= {200, 429}
        assert all(a.headers["retry-after"] for a in limited)
        time.sleep(1.0)
        secret = made["key"].encode()
        for path in [*local_ray.temp_dir.glob("session_*/logs/**/*")]:
            if path.is_file():
                assert secret not in path.read_bytes(), path
    finally:
        ask_control(local_ray, "revoke_key", key_id=made["key_id"])

    def status():
        body = {"x": ROWS[0]}
        return post(gateway, "/predict/scale", json=body, headers=headers).status_code

    wait_for("the key is revoked", lambda: status() == 401)
    ask_control(local_ray, "delete_key", key_id=made["key_id"])
    wait_for("the gateway asks nobody again", lambda: status() == 200)
