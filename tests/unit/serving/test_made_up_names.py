"""Names that callers make up: refused, and kept neither in metrics nor in the log."""

from __future__ import annotations

import asyncio
import tempfile

import grpc
import httpx
import pytest
from fastapi import FastAPI
from gateway_kit import Served, reaching, route_of, tensors
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from sundog.security.keys import KeyRing, new_key
from sundog.serving import grpc_server
from sundog.serving.calls import Calls
from sundog.serving.contract import BadRequest, Contract
from sundog.serving.http_api import GatewayApp
from sundog.serving.passthrough import Passthrough
from sundog.serving.routes import Routes
from sundog.serving.stats import Metrics
from sundog.serving.upstreams import Upstream

SIGNATURE = {
    "inputs": tensors(("x", "FP32", (-1,))),
    "outputs": tensors(("y", "FP32", (-1,))),
}
NAMES = [f"made-up-{i}" for i in range(5)]


class Log:
    def __init__(self):
        self.lines = []

    def add(self, entry):
        self.lines.append(entry)


async def nothing(*_):
    await asyncio.Event().wait()


def run(scenario):
    """`scenario(calls, key)` in a loop: one service without a replica, one key."""

    async def main():
        keys, log = KeyRing(), Log()
        key, record = new_key("me", 0.0)
        keys.update([record.document()])
        routes = Routes(reaching(nothing))
        service = route_of("same", Served(None, SIGNATURE, {"hold_s": 0.0}))
        routes.apply({"epoch": 1, "version": 1, "services": {"same": service}, "keys": []})
        sweeping = asyncio.create_task(routes.sweep_forever())
        calls = Calls(routes, keys, log=log)
        await scenario(calls, key)
        sweeping.cancel()
        assert {line["service"] for line in log.lines} == {"same"}, "what is there is noted"
        text = calls.metrics.text([])
        assert "made-up" not in text
        assert 'service="same"' in text

    asyncio.run(main())


def request(name, version=""):
    made = pb.ModelInferRequest(model_name=name, model_version=version)
    made.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    return made


def test_over_grpc():
    async def scenario(calls, key):
        with tempfile.TemporaryDirectory(prefix="names-", dir="/tmp") as folder:
            server = await grpc_server.start(calls, f"unix:{folder}/g")
            async with grpc.aio.insecure_channel(f"unix:{folder}/g") as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                metadata = [("authorization", f"Bearer {key}")]
                said = [await refusal(stub.ModelInfer(request(n))) for n in NAMES]
                assert set(said) == {grpc.StatusCode.UNAUTHENTICATED}
                said = [
                    await refusal(stub.ModelInfer(request(n), metadata=metadata)) for n in NAMES
                ]
                assert set(said) == {grpc.StatusCode.NOT_FOUND}
                version = stub.ModelInfer(request("same", "made-up"), metadata=metadata)
                assert await refusal(version) == grpc.StatusCode.NOT_FOUND
                asked = iter([request(n) for n in NAMES])
                stream = stub.ModelStreamInfer(asked, metadata=metadata)
                assert [bool(a.error_message) async for a in stream] == [True] * len(NAMES)
                there = stub.ModelInfer(request("same"), metadata=metadata)
                assert await refusal(there) == grpc.StatusCode.UNAVAILABLE
            await server.stop(0)
        text = calls.metrics.text([])
        refused = f'sundog_gateway_refused_total{{service="",key="",status="401"}} {len(NAMES)}'
        assert refused in text

    run(scenario)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


def test_over_http():
    async def scenario(calls, key):
        openai = Passthrough(calls, {"chat": Upstream(url="http://127.0.0.1:9/v1")})
        transport = httpx.ASGITransport(GatewayApp(calls, FastAPI(), openai))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:

            async def ask(path, body, headers):
                return (await client.post(path, json=body, headers=headers)).status_code

            for headers, status in (({}, 401), ({"authorization": f"Bearer {key}"}, 404)):
                for name in NAMES:
                    for path in (f"/v2/models/{name}/infer", f"/predict/{name}"):
                        assert await ask(path, {"x": [1.0]}, headers) == status
                    assert await ask("/v1/completions", {"model": name}, headers) == status
            assert await ask("/predict/same", {"x": [1.0]}, headers) == 503

    run(scenario)


def test_subjects_of_tokens_share_a_series():
    metrics = Metrics()
    for name in NAMES:
        metrics.count("same", "1", f"jwt:{name}", 200, 0.1)
        metrics.tokens("same", f"jwt:{name}", "input", 2)
    text = metrics.text([])
    assert (
        'sundog_gateway_requests_total{service="same",version="1",key="jwt",status="200"} 5' in text
    )
    assert 'sundog_gateway_tokens_total{service="same",key="jwt",kind="input"} 10' in text


def test_long_names_are_not_compared_as_a_whole(monkeypatch):
    seen = []
    monkeypatch.setattr("difflib.get_close_matches", lambda word, *_, **__: seen.append(word) or [])
    with pytest.raises(BadRequest, match="there is no service") as caught:
        Routes(reaching(nothing)).find("s" * 2_000_000)
    assert len(caught.value.message) < 300
    with pytest.raises(BadRequest, match="there is no field") as caught:
        Contract("same", "1", SIGNATURE).parse_rows({"x" * 2_000_000: 1.0})
    assert len(caught.value.message) < 300
    assert [len(word) for word in seen] == [100, 100]
