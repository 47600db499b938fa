"""What follows from a load test: the knee, the batch curve, replicas for a rate; and the load itself."""

import asyncio

import pytest

from sundog.control.profiles import (
    Point,
    ServiceProfile,
    batch_curve,
    best_batch,
    difference,
    keep,
    kept,
    knee_of,
    propose,
)
from sundog.errors import ServiceError
from sundog.serving.open_load import Load, OpenLoad, Sent, zeros
from sundog.storage.root import open_root


def profile(**more):
    words = {
        "model": "m", "version": 2, "replicas": 2, "service_s": 0.01, "knee_rate": 200.0,
        "limit_s": 0.05, "startup_s": 4.0, "batches": {1: 0.010, 4: 0.013, 16: 0.030},
    }  # fmt: skip
    return ServiceProfile(**{**words, **more})


def test_a_proposal_leaves_room_and_an_slo_that_nothing_meets_is_said():
    assert propose(profile(), 200, None).replicas == 3
    assert propose(profile(), 70, None).replicas == 1
    with pytest.raises(ServiceError, match="even on an idle replica"):
        propose(profile(), 70, 0.005)


def test_a_proposal_costs_what_its_replicas_do():
    assert propose(profile(), 200, None).usd_day is None
    assert propose(profile(), 200, None, 0.5).usd_day == pytest.approx(3 * 24 * 0.5)


def point(rate, p99_s, replicas=1, answered=None, failed=0):
    return Point(
        rate, rate if answered is None else answered, p99_s, p99_s, p99_s, failed, replicas
    )


def test_the_knee_is_the_most_that_was_answered_in_time_and_who_did_it():
    points = [point(10, 0.02), point(20, 0.03, 2), point(40, 0.04, 4), point(80, 0.2, 8)]
    knee = knee_of("s", points, 0.05)
    assert (knee.answered, knee.replicas) == (40, 4)
    assert knee_of("s", [point(10, 0.02), point(20, 0.03, answered=12)], 0.05).rate == 10
    assert knee_of("s", [point(10, 0.02), point(20, 0.03, failed=1)], 0.05).rate == 10
    with pytest.raises(ServiceError, match=r"within 20 ms at 10 requests.*meets 10 ms"):
        knee_of("s", points, 0.01)


def test_the_batch_is_the_smallest_that_is_nearly_the_best_and_fits():
    assert best_batch({1: 0.010, 4: 0.013, 16: 0.030}, None) == 16
    assert best_batch({1: 0.010, 4: 0.013, 16: 0.030}, 0.04) == 4
    assert best_batch({1: 0.010, 2: 0.020}, None) == 1
    assert best_batch({}, 0.1) == 1


def stats(**rows):
    batches = [
        {"batch_size": int(r[1:]), "compute_infer": {"count": n, "ns": ns}}
        for r, (n, ns) in rows.items()
    ]
    return {"model_stats": [{"batch_stats": batches}]}


def test_only_what_the_load_itself_called_counts():
    calls = difference(stats(b1=(10, 10e6), b4=(9, 18e6)), stats(b1=(5, 9e6)))
    assert calls == {"1": [5, 1e6], "4": [9, 18e6]}
    assert batch_curve(calls) == {1: pytest.approx(0.2e-3), 4: pytest.approx(2e-3)}
    assert batch_curve({"1": [2, 1e6]}) == {}


def test_a_profile_lies_beside_its_version(tmp_path):
    root = open_root(tmp_path.as_uri())
    assert kept(root, "m", 2) is None
    keep(root, profile(points=(Point(10, 10, 0.01, 0.01, 0.01, 0),)))
    found = kept(root, "m", 2)
    assert (found["format"], found["service_s"], found["batches"]["4"]) == (1, 0.01, 0.013)


def test_latency_is_counted_from_when_a_request_should_have_left():
    load = Load(10, 1.0, [Sent(0.1, 0.1, 200), Sent(0.2, 0.9, 200), Sent(0.3, 0.1, 503)])
    assert (load.failed, load.longest_gap_s()) == (1, pytest.approx(0.9))
    assert load.quantile_s(0.99) == 0.9
    assert Load(10, 1.0).quantile_s(0.5) == float("inf")


def test_zeros_fit_the_inputs():
    body = zeros([{"name": "x", "datatype": "FP32", "shape": [-1, 2]},
                  {"name": "w", "datatype": "BYTES", "shape": [1]}])  # fmt: skip
    assert b'"shape":[1,2],"data":[0,0]' in body
    assert b'"data":[""]' in body


def test_requests_leave_at_their_rate_and_failures_are_counted():
    async def go():
        served = 0

        async def answer(reader, writer):
            nonlocal served
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"POST /x HTTP/1.1")
                assert b"authorization: Bearer k" in head
                await reader.readexactly(2)
                served += 1
                status = b"503 Busy" if served % 5 == 0 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\n{}")

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        load = OpenLoad(f"http://127.0.0.1:{port}", "/x", b"{}", key="k")
        seen = await load.run(200, 0.25)
        load.close()
        server.close()
        gone = await OpenLoad(f"http://127.0.0.1:{port}", "/x", b"{}").run(50, 0.1)
        return seen, gone

    seen, gone = asyncio.run(go())
    assert (len(seen.sent), seen.failed) == (50, 10)
    assert [s.status for s in gone.sent] == [0] * 5
