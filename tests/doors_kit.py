"""A gateway's HTTP and gRPC in this loop, before services without replicas, with keys and a log."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from gateway_kit import Served, reaching, route_of, tensors
from tritonclient.grpc import service_pb2 as pb

from sundog.security.keys import KeyRing, new_key
from sundog.serving import feedback, grpc_server
from sundog.serving.calls import Calls
from sundog.serving.http_api import GatewayApp
from sundog.serving.pages import build_pages
from sundog.serving.passthrough import Passthrough
from sundog.serving.routes import Routes
from sundog.serving.upstreams import Upstream

SIGNATURE = {"inputs": tensors(("x", "FP32", (-1,))), "outputs": tensors(("y", "FP32", (-1,)))}


class Log:
    def __init__(self):
        self.lines: list[dict[str, Any]] = []

    def add(self, entry):
        self.lines.append(entry)


@dataclass
class Doors:
    app: GatewayApp
    calls: Calls
    keys: KeyRing
    http: httpx.AsyncClient
    grpc: grpc.aio.Channel
    log: Log

    def key(self, *scopes, **limits):
        """(its id, the header that has it); from the first one on everybody needs one."""
        key, record = new_key("k", 0.0, scopes=scopes, **limits)
        self._records = [*getattr(self, "_records", ()), record.document()]
        self.keys.update(self._records)
        return record.key_id, {"authorization": f"Bearer {key}"}


@asynccontextmanager
async def doors_of(**services):
    """Each service by its name, with what its route says otherwise than usual."""

    async def nothing(*_):
        await asyncio.Event().wait()

    routes, keys, log = Routes(reaching(nothing)), KeyRing(), Log()
    documents = {
        name: route_of(name, Served(None, SIGNATURE, {"hold_s": 0.0, **route}))
        for name, route in services.items()
    }
    routes.apply({"epoch": 1, "version": 1, "services": documents, "keys": []})
    calls = Calls(routes, keys, log=log, limiter=keys.limiter)
    scores = feedback.router(calls.remembered, calls.observer, keys)
    pages = build_pages(routes, calls.metrics, keys, scores)
    openai = Passthrough(calls, {n: Upstream(url="http://127.0.0.1:9/v1") for n in services})
    app = GatewayApp(calls, pages, openai)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="doors-", dir="/tmp"))
        server = await grpc_server.start(calls, f"unix:{folder}/g")
        stack.push_async_callback(server.stop, 0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{folder}/g"))
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
        )
        sweeping = asyncio.create_task(routes.sweep_forever())
        stack.callback(sweeping.cancel)
        yield Doors(app, calls, keys, client, channel, log)


def infer(name, version=""):
    made = pb.ModelInferRequest(model_name=name, model_version=version)
    made.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    return made


async def refusal(call):
    """(status, trailing metadata) of a call over gRPC that is refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), dict(error.trailing_metadata())
    raise AssertionError("it was answered")
