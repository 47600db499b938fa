"""Every answer has its request's id, every request to a service that is here its line and its count."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from doors_kit import doors_of, infer, refusal
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from sundog.serving.http_body import Gone

MINE = {"x-request-id": "mine"}


def run(scenario, **services):
    async def main():
        async with doors_of(**(services or {"same": {}})) as doors:
            await scenario(doors)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/docs"), ("GET", "/metrics"), ("GET", "/sundog/services"),
     ("GET", "/nothing"), ("POST", "/feedback"), ("GET", "/v2"), ("GET", "/v2/nothing"),
     ("GET", "/v2/models/same"), ("POST", "/predict/same"), ("POST", "/v1/embeddings"),
     ("GET", "/v1/models"), ("GET", "/openapi.json")],
)  # fmt: skip
def test_over_http(method, path):
    async def scenario(doors):
        for key in (False, True):
            if key:
                doors.key("nothing")
            given = await doors.http.request(method, path, headers=MINE)
            assert given.headers.get_list("x-request-id") == ["mine"]
            made = [await doors.http.request(method, path) for _ in range(2)]
            assert made[0].headers["x-request-id"] != made[1].headers["x-request-id"]

    run(scenario)


def test_over_grpc():
    async def scenario(doors):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(doors.grpc)
        health = health_pb2_grpc.HealthStub(doors.grpc)
        metadata = list(MINE.items())
        for ask, request in (
            (stub.ServerLive, pb.ServerLiveRequest()), (stub.ServerReady, pb.ServerReadyRequest()),
            (stub.ServerMetadata, pb.ServerMetadataRequest()),
            (stub.ModelReady, pb.ModelReadyRequest(name="same")),
            (stub.ModelMetadata, pb.ModelMetadataRequest(name="same")),
            (stub.RepositoryIndex, pb.RepositoryIndexRequest()),
            (health.Check, health_pb2.HealthCheckRequest()),
        ):  # fmt: skip
            call = ask(request, metadata=metadata)
            await call
            assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
        code, trailing = await refusal(stub.ModelInfer(infer("same"), metadata=metadata))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert (trailing["x-request-id"], int(trailing["retry-after"]) > 0) == ("mine", True)
        doors.key("nothing")
        code, trailing = await refusal(stub.ModelInfer(infer("same"), metadata=metadata))
        assert (code, trailing["x-request-id"]) == (grpc.StatusCode.UNAUTHENTICATED, "mine")

    run(scenario)


def test_what_is_refused_is_logged_and_counted_too():
    async def scenario(doors):
        async def ask(path, headers, method="POST"):
            body = {"x": [1.0]}
            return (await doors.http.request(method, path, json=body, headers=headers)).status_code

        assert await ask("/predict/same", MINE, "GET") == 405
        key_id, mine = doors.key("same", rate=0.001, burst=2)
        else_id, elses = doors.key("else")
        paths = [("/predict/same", {}), ("/predict/same", elses),
                 ("/v2/models/same/versions/9/infer", mine), ("/predict/same", mine),
                 ("/predict/same", mine), ("/v1/embeddings", mine)]  # fmt: skip
        for path, headers in paths:
            await ask(path, {**MINE, **headers})
        stub = service_pb2_grpc.GRPCInferenceServiceStub(doors.grpc)
        await refusal(stub.ModelInfer(infer("same"), metadata=list(elses.items())))
        seen = [(line["status"], line["key"]) for line in doors.log.lines]
        assert seen == [
            (405, ""), (401, ""), (403, else_id), (404, key_id), (503, key_id), (429, key_id),
            (429, key_id), (403, else_id),
        ]  # fmt: skip
        assert all(line["service"] == "same" for line in doors.log.lines)
        text = doors.calls.metrics.text([])
        for status, key in seen:
            assert (
                f'requests_total{{service="same",version="",key="{key}",status="{status}"}}' in text
                or status == 503
            )
        assert 'refused_total{service="same",key="",status="401"} 1' in text
        assert f'refused_total{{service="same",key="{key_id}",status="429"}} 2' in text
        assert doors.calls.observer.take().keys() <= {"same"}

    run(scenario)


def test_a_client_that_left_before_its_body_was_whole_is_logged():
    async def scenario(doors):
        async def receive():
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": "/predict/same", "headers": []}
        await doors.app(scope, receive, None)
        assert [(line["service"], line["status"]) for line in doors.log.lines] == [("same", 499)]

    run(scenario)


def test_spans_end_whatever_becomes_of_a_request():
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from sundog.serving.tracing import Traces

    spans = []

    class Kept(SpanExporter):
        def export(self, batch):
            spans.extend(batch)
            return SpanExportResult.SUCCESS

    async def scenario(doors):
        doors.calls.traces = Traces(Kept(), "test")
        await doors.http.get("/v2/models/nobody")
        await doors.http.post("/predict/nobody", json={})
        await doors.http.post("/v1/embeddings", json={"model": "nobody"})
        doors.key("nothing")
        await doors.http.post("/predict/same", json={})
        doors.calls.traces.close()

    run(scenario)
    assert [s.attributes["http.response.status_code"] for s in spans] == [404, 404, 404, 401]


@pytest.mark.parametrize(
    "path", ["/predict/same", "/v2/models/same/config", "/broken", "/v1/models"]
)
def test_what_nobody_expected_is_said_as_json_and_logged(path, monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("the reason")

    monkeypatch.setattr("sundog.serving.describe.config", broken)
    monkeypatch.setattr("sundog.serving.contract.Contract.parse_rows", broken)
    monkeypatch.setattr("sundog.serving.passthrough.Passthrough._models", broken)

    async def scenario(doors):
        doors.app.pages.get("/broken")(lambda: broken())
        method = "POST" if path.startswith("/predict") else "GET"
        answer = await doors.http.request(method, path, json={}, headers=MINE)
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
        assert "log" in str(answer.json()["error"])
        [record] = [r for r in caplog.records if r.name == "sundog.gateway"]
        assert "mine" in record.getMessage()
        assert "the reason" in record.exc_text
        if method == "POST":
            assert [line["status"] for line in doors.log.lines] == [500]

    run(scenario)


def test_over_grpc_too(monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("the reason")

    monkeypatch.setattr("sundog.serving.grpc_server.read_infer", broken)

    async def scenario(doors):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(doors.grpc)
        code, _ = await refusal(stub.ModelInfer(infer("same"), metadata=list(MINE.items())))
        assert code == grpc.StatusCode.INTERNAL
        [said] = [a async for a in stub.ModelStreamInfer(iter([infer("same")]))]
        assert "log" in said.error_message
        assert [line["status"] for line in doors.log.lines] == [500, 500]
        assert "request mine failed" in caplog.text

    run(scenario)


def test_a_size_of_thousands_of_digits_is_no_number():
    async def scenario(doors):
        headers = {"inference-header-content-length": "1" * 5000}
        answer = await doors.http.post("/v2/models/same/infer", content=b"{}", headers=headers)
        assert (answer.status_code, "not a number" in answer.text) == (400, True)

    run(scenario)


def test_who_has_no_key_holds_nothing_open():
    async def never():
        await asyncio.Event().wait()
        yield b""

    async def scenario(doors):
        doors.key("same")
        stub = service_pb2_grpc.GRPCInferenceServiceStub(doors.grpc)
        stream = stub.ModelStreamInfer(never())
        code, _ = await refusal(anext(aiter(stream)))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        # Before any message came.
        whole = doors.grpc.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        code, _ = await refusal(whole(never()))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(doors.grpc)
        watched = health.Watch(health_pb2.HealthCheckRequest())
        code, _ = await refusal(anext(aiter(watched)))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        status = (await health.Check(health_pb2.HealthCheckRequest())).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live

    run(scenario)


def test_calls_over_grpc_are_so_many_at_a_time(monkeypatch):
    monkeypatch.setattr("sundog.serving.grpc_server.MAX_RPCS", 1)

    async def scenario(doors):
        health = health_pb2_grpc.HealthStub(doors.grpc)
        watched = health.Watch(health_pb2.HealthCheckRequest())
        await anext(aiter(watched))
        code, _ = await refusal(health.Check(health_pb2.HealthCheckRequest()))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        watched.cancel()

    run(scenario)


def test_one_that_sleeps_is_ready_by_every_protocol():
    async def scenario(doors):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(doors.grpc)
        health = health_pb2_grpc.HealthStub(doors.grpc)
        for name, ready in (("asleep", True), ("gone", False)):
            assert (await stub.ModelReady(pb.ModelReadyRequest(name=name))).ready is ready
            said = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert (said.status == health_pb2.HealthCheckResponse.SERVING) is ready
            answer = await doors.http.get(f"/v2/models/{name}/ready")
            assert answer.is_success is ready

    run(scenario, asleep={"may_sleep": True}, gone={})


@pytest.mark.parametrize("verb", ["infer", "generate"])
def test_a_client_that_leaves_ends_its_waiting_call(verb, monkeypatch):
    monkeypatch.setattr("sundog.serving.departures.LOOK_S", 0.01)
    body = {
        "infer": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}',
        "generate": b'{"x": 1}',
    }[verb]

    async def scenario(doors):
        left, sent = asyncio.Event(), []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": f"/v2/models/same/{verb}", "headers": [],
        }  # fmt: skip
        asked = asyncio.create_task(doors.app(scope, receive, send))
        lane = doors.calls.routes.services["same"].versions["1"].lane
        while not lane.stats.arrivals:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert not asked.done()
        left.set()
        await asyncio.wait_for(asked, 20)
        assert not sent
        assert [line["status"] for line in doors.log.lines] == [499]
        while lane.waiting or lane.under_way:
            await asyncio.sleep(0.01)

    run(scenario, same={"hold_s": 600.0, "deadline_s": 600.0})


def test_an_answer_in_time_is_watched_by_nobody(monkeypatch):
    monkeypatch.setattr("sundog.serving.departures.LOOK_S", 0.01)

    async def main():
        from sundog.serving.departures import Departures

        async def receive():
            raise AssertionError("it was asked whether the client has left")

        departures, answer = Departures(), asyncio.get_running_loop().create_future()
        departures.add(answer, receive)
        departures.remove(answer)
        await asyncio.sleep(0.05)
        other = asyncio.get_running_loop().create_future()
        parked = asyncio.Event()

        async def wait():
            await parked.wait()
            return {"type": "http.disconnect"}

        departures.add(other, wait)
        await asyncio.sleep(0.05)
        parked.set()
        with pytest.raises(Gone):
            await other

    asyncio.run(main())
