"""The Open Inference Protocol over gRPC: Triton's service and the standard health service.

Reads and writes messages only; who may, which version answers and what is noted is the same as over
HTTP (calls.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as service

from sundog.clock import WALL
from sundog.errors import ServiceError
from sundog.security.authoriser import Identity
from sundog.security.tls import Certificate
from sundog.serving import describe
from sundog.serving.calls import Call, Calls, may_wait
from sundog.serving.contract import BadRequest
from sundog.serving.generate import parts_of
from sundog.serving.grpc_guard import Guard, failed, named, pairs, refusals
from sundog.serving.grpc_messages import final, read_infer, wants_empty_final, write_infer
from sundog.serving.http_body import CLIENT_GONE
from sundog.serving.lane import NotServed
from sundog.serving.tensors import BadTensor

MAX_MESSAGE = 128 * 2**20
"""A message is whole before it is looked at: services' `max_body` holds only below this."""
BIND_TIMEOUT_S = 5.0
MAX_CONCURRENT = 64
"""Requests of one ModelStreamInfer that are worked on at a time."""
MAX_RPCS = 4096
"""Calls and streams of all clients at a time; beyond it, RESOURCE_EXHAUSTED."""


@dataclass
class Noted:
    """What the log is told besides the request."""

    size: int = 0


class Inference(service.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Everything that Sundog can say; what is Triton's own (shared memory, traces) is unimplemented."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    # -- what is there

    async def ServerLive(self, request: Any, context: Any) -> Any:
        named(context)
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        named(context)
        return pb.ServerReadyResponse(ready=self._calls.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        named(context)
        return ParseDict(describe.server(), pb.ServerMetadataResponse())

    async def ModelReady(self, request: Any, context: Any) -> Any:
        async with refusals(context):
            self._look(context, request.name)
            try:
                route, found = self._calls.routes.find_version(
                    request.name, request.version or None
                )
            except BadRequest:
                return pb.ModelReadyResponse(ready=False)
            return pb.ModelReadyResponse(ready=route.is_ready(found))

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        async with refusals(context):
            route, found = await self._find(request, context)
            return ParseDict(describe.metadata(route, found), pb.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        async with refusals(context):
            _, found = await self._find(request, context)
            config = describe.config(request.name, found)
            return ParseDict({"config": config}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        async with refusals(context):
            document = describe.statistics(
                self._calls.routes, self._look(context, request.name),
                request.name or None, request.version or None,
            )  # fmt: skip
            return ParseDict(document, pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        async with refusals(context):
            rows = describe.index(self._calls.routes, self._look(context), request.ready)
            return ParseDict({"models": rows}, pb.RepositoryIndexResponse())

    async def _find(self, request: Any, context: Any) -> Any:
        self._look(context, request.name)
        route, found = self._calls.routes.find_version(request.name, request.version or None)
        return route, found or await self._calls.hold(request.name)

    def _look(self, context: Any, service: str = "") -> Identity:
        return self._calls.look(pairs(context.invocation_metadata()), service)

    # -- inference

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        async with refusals(context) as (headers, request_id):
            call = Call(headers, request_id)
            async with self._noted(call) as noted:
                chosen = await self._choose(call, request)
                parsed = read_infer(chosen.contract, request)
                outputs = await self._calls.ask(call, chosen, parsed)
                response = write_infer(chosen.contract, parsed, outputs)
                noted.size = response.ByteSize()
                return response

    async def _choose(self, call: Call, request: Any) -> Any:
        calls, name = self._calls, request.model_name
        calls.authorise(call, call.headers.items(), name)
        route = calls.routes.find(name)
        if request.model_version:
            calls.routes.find_version(name, request.model_version)
        if request.ByteSize() > route.max_body:
            raise BadRequest(
                f"the message is over {route.max_body} bytes, the service's max_body", 413
            )
        return await calls.choose(call, name, request.model_version or None)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> Any:
        """Requests are worked on side by side; each has one response, or one for each part."""
        answers: asyncio.Queue[Any] = asyncio.Queue(MAX_CONCURRENT)
        places = asyncio.Semaphore(MAX_CONCURRENT)
        tasks: set[asyncio.Task[None]] = set()
        headers, request_id = named(context)

        async def work(request: Any) -> None:
            try:
                await self._answer(request, Call(headers, request_id), answers.put)
            finally:
                places.release()

        async def feed() -> None:
            async for request in requests:
                await places.acquire()
                task = asyncio.ensure_future(work(request))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
            await answers.put(None)

        feeding = asyncio.ensure_future(feed())
        try:
            while (answer := await answers.get()) is not None:
                yield answer
        finally:
            for task in (feeding, *tasks):
                task.cancel()

    async def _answer(
        self, request: Any, call: Call, put: Callable[[Any], Awaitable[None]]
    ) -> None:
        async def refuse(message: str) -> None:
            refusal = pb.ModelStreamInferResponse(error_message=message)
            refusal.infer_response.id = request.id
            refusal.infer_response.model_name = request.model_name
            await put(refusal)

        try:
            async with self._noted(call):
                chosen = await self._choose(call, request)
                parsed = read_infer(chosen.contract, request)
                if not chosen.lane.streams:
                    try:
                        outputs = await self._calls.ask(call, chosen, parsed)
                        await put(_part(write_infer(chosen.contract, parsed, outputs), True))
                        return
                    except NotServed:
                        if not chosen.lane.streams:  # else it has just been found out
                            raise
                parsed.trace = call.trace
                answering = parts_of(chosen.lane, parsed, may_wait(call))
                async with contextlib.aclosing(answering) as parts:
                    async for part in parts:
                        await put(_part(write_infer(chosen.contract, parsed, part), False))
                if wants_empty_final(request):
                    await put(_part(final(chosen.contract, parsed), True))
        except (BadRequest, NotServed, BadTensor) as error:
            await refuse(str(error))
        except Exception:  # noqa: BLE001 - logged
            await refuse(failed(call.request_id))

    @contextlib.asynccontextmanager
    async def _noted(self, call: Call) -> AsyncIterator[Noted]:
        self._calls.begin(call)
        noted = Noted()
        began_s, status = WALL.monotonic_s(), 200
        try:
            yield noted
        except (BadRequest, NotServed) as error:
            status = error.status
            raise
        except BadTensor:
            status = 400
            raise
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        except Exception:
            status = 500
            raise
        finally:
            self._calls.note(call, status, noted.size, WALL.monotonic_s() - began_s)


def _part(response: Any, last: bool) -> Any:
    if not last or "triton_final_response" not in response.parameters:
        response.parameters["triton_final_response"].bool_param = last
    return pb.ModelStreamInferResponse(infer_response=response)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: the server ("") and each service by its name. Nobody is asked for a key to check,
    who wants to watch is: that stays open."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def Check(self, request: Any, context: Any) -> Any:
        named(context)
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        said = None
        while True:
            status = self._status(request.service)
            if status != said:
                said = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(0.5)

    def _status(self, name: str) -> Any:
        kinds = health_pb2.HealthCheckResponse
        if name in ("", "inference.GRPCInferenceService"):
            ready = self._calls.ready
        elif name in self._calls.routes.services:
            route = self._calls.routes.services[name]
            ready = route.is_ready(route.choose())
        else:
            return kinds.SERVICE_UNKNOWN
        return kinds.SERVING if ready else kinds.NOT_SERVING


class Presented:
    """What the server shows of itself, and may be told anew."""

    def __init__(self, certificate: Certificate) -> None:
        self._fresh: Any = None
        self.credentials = grpc.dynamic_ssl_server_credentials(_read(certificate), self._take)

    def renew(self, certificate: Certificate) -> None:
        self._fresh = _read(certificate)

    def _take(self) -> Any:
        # Asked at every handshake; None: as before.
        fresh, self._fresh = self._fresh, None
        return fresh


def _read(certificate: Certificate) -> Any:
    pair = (certificate.key.read_bytes(), certificate.chain.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair])


async def start(calls: Calls, address: str, presented: Presented | None = None) -> Any:
    """The server, listening on `host:port`. Raises ServiceError that names the port."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        interceptors=[Guard(calls)],
        maximum_concurrent_rpcs=MAX_RPCS,
    )
    service.add_GRPCInferenceServiceServicer_to_server(Inference(calls), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(calls), server)
    end_s = WALL.monotonic_s() + BIND_TIMEOUT_S
    while True:
        try:
            if presented is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, presented.credentials)
            break
        except RuntimeError as error:
            # A gateway that is just leaving may hold the port for a moment.
            if WALL.monotonic_s() > end_s:
                raise ServiceError(
                    f"the gateway cannot listen for gRPC on {address}: {error}",
                    "free that port, or set SUNDOG_GATEWAY_GRPC=<host>:<free port> (empty: no gRPC)",
                ) from None
            await asyncio.sleep(0.2)
    await server.start()
    return server
