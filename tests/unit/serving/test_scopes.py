"""What a key lets its holder see: its own services, over HTTP, gRPC and `/v1`, and nothing is counted."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from doors_kit import doors_of, refusal
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

INDEX = "/v2/repository/index"


def run(scenario):
    async def main():
        async with doors_of(digits={}, other={}) as doors:
            await scenario(doors)

    asyncio.run(main())


def test_lists_are_of_what_a_key_is_for():
    async def scenario(doors):
        async def seen(headers):
            services = (await doors.http.get("/sundog/services", headers=headers)).json()
            stats = (await doors.http.get("/v2/models/stats", headers=headers)).json()
            models = (await doors.http.get("/v1/models", headers=headers)).json()
            return [
                [s["service"] for s in services],
                [s["name"] for s in stats["model_stats"]],
                [s["name"] for s in (await doors.http.post(INDEX, headers=headers)).json()],
                [m["id"] for m in models["data"]],
                (await doors.http.get("/", headers=headers)).json()["services"],
            ]

        assert await seen({}) == [["digits", "other"]] * 5, "nobody has a key: all is open"
        _, mine = doors.key("digits", rate=0.001)
        _, whole = doors.key("*")
        for _ in range(3):
            assert await seen(mine) == [["digits"]] * 5
        assert await seen(whole) == [["digits", "other"]] * 5
        assert (await doors.http.get("/")).json()["services"] == []
        for path in ("/sundog/services", "/v2/models/stats", "/v1/models"):
            assert (await doors.http.get(path)).status_code == 401

    run(scenario)


@pytest.mark.parametrize("verb", ["", "/ready", "/config", "/stats", "/versions/1/stats"])
def test_a_service_of_others_is_not_looked_at(verb):
    async def scenario(doors):
        key_id, mine = doors.key("digits")
        answer = await doors.http.get(f"/v2/models/other{verb}", headers=mine)
        assert (answer.status_code, f"key {key_id} is not for" in answer.text) == (403, True)
        own = await doors.http.get(f"/v2/models/digits{verb}", headers=mine)
        assert own.status_code == (503 if verb == "/ready" else 200)
        assert (await doors.http.get("/v1/models/other", headers=mine)).status_code == 404
        assert (await doors.http.get("/v1/models/digits", headers=mine)).json()["id"] == "digits"
        text = doors.calls.metrics.text([])
        assert f'refused_total{{service="other",key="{key_id}",status="403"}} 1' in text

    run(scenario)


def test_metrics_are_for_a_key_of_all_services():
    async def scenario(doors):
        assert (await doors.http.get("/metrics")).status_code == 200
        _, mine = doors.key("digits", "other")
        _, whole = doors.key("*", quota=1)
        statuses = [
            (await doors.http.get("/metrics", headers=h)).status_code for h in ({}, mine, whole)
        ]
        assert statuses == [401, 403, 200]
        for _ in range(5):
            assert (await doors.http.get("/metrics", headers=whole)).status_code == 200

    run(scenario)


def test_over_grpc():
    async def scenario(doors):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(doors.grpc)
        _, mine = doors.key("digits")
        given = list(mine.items())
        rows = await stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=given)
        assert [m.name for m in rows.models] == ["digits"]
        stats = await stub.ModelStatistics(pb.ModelStatisticsRequest(), metadata=given)
        assert [m.name for m in stats.model_stats] == ["digits"]
        for ask, request in (
            (stub.ModelMetadata, pb.ModelMetadataRequest),
            (stub.ModelConfig, pb.ModelConfigRequest),
            (stub.ModelStatistics, pb.ModelStatisticsRequest),
            (stub.ModelReady, pb.ModelReadyRequest),
        ):
            code, _ = await refusal(ask(request(name="other"), metadata=given))
            assert code == grpc.StatusCode.PERMISSION_DENIED
            await ask(request(name="digits"), metadata=given)

    run(scenario)
