"""Clients nobody here wrote against a gateway and a replica on real sockets, without Ray: the OpenAPI
document asked at random, open-inference's client, Triton's asynchronous one."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

import httpx
import ml_dtypes
import numpy as np
import pytest
import schemathesis
import tritonclient.http.aio as triton
from gateway_kit import Served, gateway_of
from hypothesis import HealthCheck, Phase, given, settings
from open_inference.openapi import InferenceRequest, RequestInput
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as conformance

from sundog.security.keys import new_key
from sundog.serving.passthrough import Passthrough
from sundog.serving.upstreams import Upstream

KINDS = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
         "FP32", "FP64", "BF16", "BYTES"]  # fmt: skip


def signature(kind):
    return {
        "inputs": [{"name": "x", "datatype": kind, "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": kind, "shape": [-1, 2]}],
    }


class Same:
    def predict(self, inputs):
        return {"y": inputs["x"]}


def passed_on(calls):
    """`/v1` before a server that always answers."""

    def answer(request):
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return httpx.Response(200, json={"object": "chat.completion", "usage": usage})

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Passthrough(calls, {"chat": Upstream(url="http://there/v1")}, client)


@pytest.fixture(scope="module")
def gateway():
    """Its address: one service for each datatype, which answers what it is given."""
    services = {k.lower(): Served(Same(), signature(k)) for k in KINDS}
    with gateway_of(services, openai=passed_on) as running:
        yield running.url


@pytest.fixture(scope="module")
def locked():
    """(address, {who: headers}): of who has no key, one for another service, one for everything."""
    with gateway_of({"fp32": Served(Same(), signature("FP32"))}, openai=passed_on) as running:
        (all_key, all_record), (key, record) = new_key("all", 0.0), new_key("x", 0.0, scopes=["x"])
        running.call(running.keys.update, [all_record.document(), record.document()])
        given = {"nobody": None, "else": key, "all": all_key}
        yield (
            running.url,
            {who: {"authorization": f"Bearer {k}"} if k else {} for who, k in given.items()},
        )


@pytest.fixture(scope="module")
def document(gateway):
    return schemathesis.openapi.from_url(f"{gateway}/openapi.json")


CHECKS = [
    not_a_server_error, conformance.status_code_conformance, conformance.content_type_conformance,
    conformance.response_schema_conformance,
]  # fmt: skip


def test_every_path_answers_as_the_document_says(document):
    """Whatever is sent: no answer that the document does not announce, and none of the 5xx."""
    ask_all(document, {})


@pytest.mark.parametrize("who", ["nobody", "else", "all"])
def test_so_does_every_path_that_asks_for_a_key(locked, who):
    address, headers = locked
    ask_all(schemathesis.openapi.from_url(f"{address}/openapi.json"), headers[who])


def ask_all(document, headers):
    operations = [each.ok() for each in document.get_all_operations()]
    assert len(operations) > 25
    for operation in operations:

        @settings(
            max_examples=6, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def ask(case):
            case.validate_response(case.call(timeout=30, headers=headers), checks=CHECKS)

        ask()


@pytest.mark.parametrize("path", ["/v2/models/fp32", "/v2/models/fp32/versions/1"])
@pytest.mark.parametrize("verb", ["", "/ready", "/config", "/stats"])
def test_what_is_in_the_document_is_there(gateway, document, path, verb):
    assert httpx.get(gateway + path + verb, trust_env=False).status_code == 200
    template = path.replace("fp32", "{service}").replace("versions/1", "versions/{version}") + verb
    assert template in document.raw_schema["paths"]


def test_open_inferences_client(gateway):
    client = OpenInferenceClient(base_url=gateway)
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness("fp32")
    assert client.read_server_metadata().name == "sundog"
    assert client.read_model_metadata("fp32").inputs[0].shape == [-1, 2]
    assert client.read_model_version_metadata("fp32", "1").versions == ["1"]
    tensor = RequestInput(name="x", shape=[1, 2], datatype="FP32", data=[1.0, 2.0])
    answer = client.model_infer("fp32", request=InferenceRequest(id="i-1", inputs=[tensor]))
    assert (answer.id, answer.outputs[0].name) == ("i-1", "y")
    assert "1.0, 2.0" in str(answer.outputs[0].data)
    with pytest.raises(ApiError) as caught:
        client.model_infer("nobody", request=InferenceRequest(inputs=[tensor]))
    assert caught.value.status_code == 404


def sample(kind):
    if kind == "BYTES":
        return np.array([[b"a", "é\0".encode()], [b"", b"\xff\xfe"]], dtype=object)
    if kind == "BOOL":
        return np.array([[True, False], [False, True]])
    if kind in ("BF16", "FP16", "FP32", "FP64"):
        values = np.array([[0.5, -np.inf], [np.nan, 65504.0 if kind != "BF16" else 2.0]])
        return values.astype(
            {"FP16": "f2", "FP64": "f8", "BF16": ml_dtypes.bfloat16}.get(kind, "f4")
        )
    dtype = np.dtype(kind.lower())
    limits = np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype)


@pytest.mark.parametrize("rows", [2, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_datatype_comes_back_through_tritons_asynchronous_client(gateway, kind, rows):
    async def main():
        values = sample(kind)[:rows]
        async with triton.InferenceServerClient(gateway.removeprefix("http://")) as client:
            tensor = triton.InferInput("x", list(values.shape), kind)
            tensor.set_data_from_numpy(values)
            for packing in (None, "gzip", "deflate"):
                result = await client.infer(
                    kind.lower(), [tensor], request_compression_algorithm=packing,
                    response_compression_algorithm=packing,
                )  # fmt: skip
                got = result.as_numpy("y")
                assert got.shape == values.shape
                if kind == "BF16":  # numpy knows no NaN of its own there
                    got, values = got.astype("f4"), values.astype("f4")
                np.testing.assert_array_equal(got, values)
                values = sample(kind)[:rows]

    asyncio.run(main())


@pytest.mark.slow
def test_a_body_of_100_mb_comes_back_and_one_beyond_the_limit_is_refused(gateway):
    async def main():
        values = np.ones((100 * 2**20 // 8, 2), np.float32)
        async with triton.InferenceServerClient(gateway.removeprefix("http://")) as client:
            tensor = triton.InferInput("x", list(values.shape), "FP32")
            tensor.set_data_from_numpy(values)
            result = await client.infer("fp32", [tensor])
            assert result.as_numpy("y").shape == values.shape

    asyncio.run(main())
    address = urlsplit(gateway)
    with socket.create_connection((address.hostname, address.port), timeout=15) as connection:
        head = "POST /v2/models/fp32/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        connection.sendall((head % 2**40).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data", ["[NaN, 1]", "[Infinity, 1]", "[1e999, 1]", '["a", 1]', "[[1], 2]"]
)
def test_numbers_that_json_does_not_have_are_refused(gateway, data):
    body = f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": {data}}}]}}'
    answer = httpx.post(f"{gateway}/v2/models/fp32/infer", content=body, trust_env=False)
    assert (answer.status_code, bool(answer.json()["error"])) == (400, True)
