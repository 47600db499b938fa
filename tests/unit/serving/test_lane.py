"""The queue of a version: stacking, splitting, holding, refusing, and what a lost replica costs."""

import asyncio

import numpy as np
import orjson
import pytest

from sundog.serving import waiting
from sundog.serving.contract import Contract
from sundog.serving.frames import cut, tensor_meta
from sundog.serving.gateway import lane_totals
from sundog.serving.lane import HOLD_S, MAX_ATTEMPTS, Lane, Limits, NotServed

SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}],
}
CONTRACT = Contract("echo", "1", SIGNATURE)


class Link:
    """A replica that doubles what it gets, when told to."""

    def __init__(self, lane, free=1):
        self.lane, self.free, self.load, self.batches = lane, free, 0, []
        self.turn, self.health = 0, None
        lane.connections.append(self)

    def send(self, batch):
        self.free -= 1
        self.batches.append(batch)

    def back(self):
        self.free += 1
        return self.batches.pop(0)

    def answer(self):
        batch = self.back()
        [(datatype, shape, raw)] = cut(batch.meta, memoryview(b"".join(batch.body)))
        doubled = (np.frombuffer(raw, "<f4") * 2).tobytes()
        batch.answered(tensor_meta([(datatype, shape, len(doubled))]), memoryview(doubled))


def parsed(*rows):
    width = len(rows[0]) if rows else 1
    flat = [v for row in rows for v in row]
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), width], "data": flat}
    data = orjson.dumps({"inputs": [tensor]})
    return CONTRACT.read(data)


def values(future):
    [(_, shape, raw)] = future.result()
    return np.frombuffer(raw, "<f4").reshape(shape).tolist()


class Time:
    now = 0.0


def run(scenario, **limits):
    async def main():
        time = Time()
        lane = Lane(CONTRACT, Limits(**limits), now=lambda: time.now)
        await scenario(lane, time)

    asyncio.run(main())


async def tick():
    for _ in range(3):
        await asyncio.sleep(0)


def test_what_is_queued_goes_in_one_frame_and_every_row_comes_back_to_its_request():
    async def scenario(lane, _):
        futures = [lane.call(parsed([i, 10 * i], [i, i])) for i in range(5)]
        link = Link(lane)
        lane.wake()
        await tick()
        assert [b.rows for b in link.batches] == [10]
        link.answer()
        for i, future in enumerate(futures):
            assert values(future) == [[2 * i, 20 * i], [2 * i, 2 * i]]

    run(scenario)


def test_rows_of_one_request_are_never_torn_apart():
    async def scenario(lane, _):
        for n in (3, 3, 3):
            lane.call(parsed(*[[1.0]] * n))
        lane.call(parsed(*[[1.0]] * 20))
        link = Link(lane, free=9)
        lane.wake()
        await tick()
        assert [b.rows for b in link.batches] == [6, 3, 20]

    run(scenario, batch=8)


def test_the_queue_is_split_over_free_replicas():
    async def scenario(lane, _):
        for _ in range(8):
            lane.call(parsed([1.0]))
        links = [Link(lane), Link(lane)]
        lane.wake()
        await tick()
        assert [[b.rows for b in link.batches] for link in links] == [[4], [4]]

    run(scenario)


def test_different_shapes_and_empty_tensors_do_not_share_a_frame():
    async def scenario(lane, _):
        futures = [
            lane.call(p) for p in (parsed([1.0]), parsed([1.0, 2.0]), parsed(), parsed([3.0]))
        ]
        link = Link(lane, free=9)
        lane.wake()
        await tick()
        assert [b.rows for b in link.batches] == [1, 1, 0, 1]
        for _ in range(4):
            link.answer()
        assert values(futures[1]) == [[2.0, 4.0]]
        assert values(futures[3]) == [[6.0]]

    run(scenario)


def test_a_poisoned_request_fails_alone():
    async def scenario(lane, _):
        futures = [lane.call(parsed([float(i)])) for i in range(3)]
        link = Link(lane, free=1)
        lane.wake()
        await tick()
        link.back().failed("model", "no")
        await tick()
        assert [b.rows for b in link.batches] == [1]
        link.answer()
        await tick()
        link.back().failed("model", "no")
        await tick()
        link.answer()
        assert values(futures[0]) == [[0.0]]
        assert values(futures[2]) == [[4.0]]
        assert futures[1].exception().status == 500

    run(scenario)


def test_a_model_that_does_not_answer_row_by_row_is_asked_one_by_one():
    async def scenario(lane, _):
        futures = [lane.call(parsed([float(i)])) for i in range(2)]
        link = Link(lane, free=1)
        lane.wake()
        await tick()
        batch = link.back()
        batch.answered(tensor_meta([("FP32", [1, 1], 4)]), memoryview(b"\0\0\0\0"))
        await tick()
        assert [b.rows for b in link.batches] == [1]
        link.answer()
        await tick()
        link.answer()
        assert [values(f) for f in futures] == [[[0.0]], [[2.0]]]

    run(scenario)


def test_a_lost_replica_costs_idempotent_requests_nothing():
    async def scenario(lane, _):
        future = lane.call(parsed([1.0]))
        link = Link(lane)
        lane.wake()
        for _ in range(MAX_ATTEMPTS):
            await tick()
            link.back().lost()
        await tick()
        link.answer()
        assert values(future) == [[2.0]]

    run(scenario)


def test_a_request_that_loses_every_replica_is_refused_in_the_end():
    async def scenario(lane, _):
        future = lane.call(parsed([1.0]))
        link = Link(lane)
        lane.wake()
        for _ in range(MAX_ATTEMPTS + 1):
            await tick()
            link.back().lost()
        assert future.exception().status == 503

    run(scenario)


def test_what_must_not_be_asked_twice_is_not():
    async def scenario(lane, _):
        future = lane.call(parsed([1.0]))
        link = Link(lane)
        lane.wake()
        await tick()
        link.back().lost()
        assert future.exception().status == 503

    run(scenario, idempotent=False)


@pytest.mark.parametrize("fault", ["model", "input"])
def test_what_must_not_be_asked_twice_shares_no_call_with_others(fault):
    async def scenario(lane, _):
        futures = [lane.call(parsed([float(i)])) for i in range(3)]
        link = Link(lane, free=9)
        lane.wake()
        await tick()
        assert [b.rows for b in link.batches] == [1, 1, 1]
        link.back().failed(fault, "no")
        await tick()
        assert len(link.batches) == 2, "not asked again"
        link.answer()
        link.answer()
        assert futures[0].exception().status in (400, 500)
        assert [values(f) for f in futures[1:]] == [[[2.0]], [[4.0]]]

    run(scenario, idempotent=False)


def test_the_newest_of_those_that_may_wait_makes_room_for_who_may_not():
    async def scenario(lane, _):
        later = [lane.call(parsed([float(i)]), later=True) for i in range(5)]
        with pytest.raises(NotServed):
            lane.call(parsed([9.0]), later=True)
        first = [lane.call(parsed([10.0 + i])) for i in range(2)]
        assert [f.done() for f in later] == [False, False, False, True, True]
        assert (later[4].exception().status, later[4].exception().retry_after_s) == (503, 1.0)
        for _ in range(3):
            lane.call(parsed([1.0]))
        with pytest.raises(NotServed):
            lane.call(parsed([1.0]))
        assert lane.waiting == 5
        assert not first[0].done()

    run(scenario, queue=5)


def test_those_that_may_wait_stay_behind_until_a_replica_is_free_for_them():
    async def scenario(lane, _):
        link = Link(lane, free=0)
        for _ in range(3):
            lane.call(parsed([1.0]), later=True)
        await tick()
        lane.call(parsed([2.0, 2.0]))
        link.free = 9
        lane.wake()
        await tick()
        assert [b.calls[0].parsed.shapes for b in link.batches] == [[(1, 2)], [(1, 1)]]
        assert [b.rows for b in link.batches] == [1, 3]

    run(scenario)


def test_clients_that_left_hold_nobody_up_who_may_wait():
    async def scenario(lane, _):
        lane.call(parsed([1.0])).cancel()
        later = lane.call(parsed([2.0]), later=True)
        link = Link(lane)
        lane.wake()
        await tick()
        link.answer()
        assert values(later) == [[4.0]]

    run(scenario)


def test_the_queue_is_bounded_in_bytes_too(monkeypatch):
    monkeypatch.setattr(waiting, "MAX_BYTES", 100)

    async def scenario(lane, _):
        large, small = parsed([1.0] * 40), parsed([1.0] * 10)
        lane.call(large, later=True)  # alone it may be as large as the service allows
        with pytest.raises(NotServed, match="MiB wait already"):
            lane.call(small, later=True)
        first = [lane.call(small) for _ in range(2)]
        with pytest.raises(NotServed):
            lane.call(small)
        link = Link(lane)
        lane.wake()
        await tick()
        link.answer()
        assert all(f.done() for f in first)
        assert lane.calls.bytes == 0
        link.free = 0
        lost = lane.call(small)
        lane.call(small)
        with pytest.raises(NotServed):
            lane.call(small)
        lost.cancel()
        lane.sweep()
        lane.call(small)
        lane.close("gone")
        assert (lane.waiting, lane.calls.bytes) == (0, 0)

    run(scenario)


def test_a_full_queue_refuses_at_once():
    async def scenario(lane, _):
        lane.call(parsed([1.0]))
        with pytest.raises(NotServed) as caught:
            lane.call(parsed([1.0]))
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)

    run(scenario, queue=1)


def test_what_comes_is_counted_once_whatever_becomes_of_it():
    async def scenario(lane, _):
        link, seen = Link(lane, free=0), []

        def arrivals():
            seen.append(lane_totals(lane)["arrivals"])
            return seen[-1]

        first, second = lane.call(parsed([1.0])), lane.call(parsed([2.0]))
        with pytest.raises(NotServed):
            lane.call(parsed([3.0]))
        assert arrivals() == 3, "what a full queue refuses is demand too"
        second.cancel()
        link.free = 1
        lane.wake()
        await tick()
        link.answer()
        assert first.done()
        lane.sweep()
        assert arrivals() == 3, "who leaves has come nevertheless"
        lane.call(parsed([1.0])).cancel()
        await tick()
        assert arrivals() == 4
        assert seen == sorted(seen)

    run(scenario, queue=2)


def test_calls_that_are_asked_again_alone_are_counted_as_answered_once():
    async def scenario(lane, _):
        futures = [lane.call(parsed([float(i)])) for i in range(2)]
        link = Link(lane, free=1)
        lane.wake()
        await tick()
        link.back().answered(tensor_meta([("FP32", [1, 1], 4)]), memoryview(b"\0\0\0\0"))
        for _ in futures:
            await tick()
            link.answer()
        assert all(f.done() for f in futures)
        assert (lane.stats.success_count, lane.stats.rows, lane.stats.executions) == (2, 2, 3)

    run(scenario)


def test_what_is_lost_past_its_deadline_holds_no_other_replica():
    async def scenario(lane, time):
        future = lane.call(parsed([1.0]))
        link = Link(lane)
        lane.wake()
        await tick()
        time.now = 6.1
        link.back().lost()
        await tick()
        assert future.exception().status == 504
        assert link.batches == []

    run(scenario, deadline_s=5)


@pytest.mark.parametrize("hold_s", [HOLD_S, 2.0, 0.0])
def test_requests_are_held_for_a_replica_as_long_as_the_service_says(hold_s):
    async def scenario(lane, time):
        future = lane.call(parsed([1.0]))
        if hold_s:
            time.now = hold_s - 0.1
            lane.sweep()
            assert not future.done()
        time.now = hold_s
        lane.sweep()
        assert future.exception().status == 503
        assert future.exception().retry_after_s

    run(scenario, hold_s=hold_s)


def test_the_deadline_ends_a_wait_in_the_queue():
    async def scenario(lane, time):
        Link(lane, free=0)
        future = lane.call(parsed([1.0]))
        time.now = 5.0
        lane.sweep()
        assert future.exception().status == 504

    run(scenario, deadline_s=5)


def test_a_request_whose_client_left_is_not_sent():
    async def scenario(lane, _):
        lane.call(parsed([1.0])).cancel()
        link = Link(lane)
        lane.wake()
        await tick()
        assert link.batches == []

    run(scenario)


def test_an_answer_that_lies_about_its_tensors_is_a_500():
    async def scenario(lane, _):
        future = lane.call(parsed([1.0]))
        link = Link(lane)
        lane.wake()
        await tick()
        link.back().answered([["FP32", [1], 400]], memoryview(b"1234"))
        assert future.exception().status == 500

    run(scenario)


def test_calls_shrink_until_they_are_answered_within_the_promised_latency():
    async def scenario(lane, time):
        link, sizes = Link(lane), []
        for _ in range(30):
            futures = [lane.call(parsed([1]), later=True) for _ in range(40)]
            while not all(f.done() for f in futures):
                await tick()
                sizes.append(link.batches[0].rows)
                time.now += 0.01 * link.batches[0].rows  # 10 ms a row
                link.answer()
                await tick()
        assert max(sizes[-10:]) <= 11, "100 ms is half of the slo"
        assert max(sizes[-10:]) >= 8
        lane.follow(Limits(batch=40))
        assert lane.size.now == 40

    run(scenario, batch=40, slo_s=0.2, deadline_s=100, queue=1000)
