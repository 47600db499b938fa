"""Overload: what the lane lets in is answered in time, the rest is refused at once. In virtual time."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque

import numpy as np
import orjson
import pytest

from sundog.serving.admission import Pace, refuse_after_s
from sundog.serving.contract import Contract
from sundog.serving.frames import tensor_meta
from sundog.serving.lane import Lane, Limits, NotServed

SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}
CONTRACT = Contract("echo", "1", SIGNATURE)
ONE = CONTRACT.read(
    orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]})
)
SLO_S = 0.2
CALL_S, ROW_S = 0.004, 0.001


class World:
    """One replica whose call takes 4 ms and 1 ms a row, arrivals at random, a clock of its own."""

    def __init__(self, seed, batch, slo_s=SLO_S):
        self.now = 0.0
        self.rng = random.Random(seed)
        self.lane = Lane(
            CONTRACT, Limits(deadline_s=5.0, batch=batch, slo_s=slo_s), now=lambda: self.now
        )
        self.lane.connections.append(self)
        self.free, self.load, self.turn, self.health = 2, 0, 0, None
        self.batches, self.done_s = deque(), 0.0
        self.events: list = []
        self.answered: list[tuple[float, float, bool]] = []
        self.refused: list[tuple[float, float]] = []
        self.gone = 0

    def send(self, batch):
        self.free -= 1
        self.done_s = max(self.done_s, self.now) + CALL_S + ROW_S * batch.rows
        heapq.heappush(self.events, (self.done_s, 1, id(batch), batch))

    def ask(self, later):
        came_s = self.now
        try:
            future = self.lane.call(ONE, later)
        except NotServed as error:
            self.refused.append((came_s, error.retry_after_s if error.status == 503 else -1))
            return

        def note(f):
            if f.exception() is None:
                self.answered.append((came_s, self.now - came_s, later))
            else:
                self.gone += 1

        future.add_done_callback(note)

    async def run(self, seconds, rate, later_share=0.0):
        end, at = self.now + seconds, self.now
        while at < end:
            at += self.rng.expovariate(rate)
            later = self.rng.random() < later_share
            heapq.heappush(self.events, (at, 0, len(self.events) + self.rng.random(), later))
        while self.events and self.events[0][0] <= end:
            self.now, kind, _, what = heapq.heappop(self.events)
            if kind == 0:
                self.ask(what)
            else:
                self.free += 1
                raw = np.zeros(what.rows, "<f4").tobytes()
                meta = tensor_meta([("FP32", (what.rows, 1), len(raw))])
                what.answered(meta, memoryview(raw))
            self.lane.sweep()
            for _ in range(3):
                await asyncio.sleep(0)


def good(answered, start, end):
    return sum(start <= at < end and took <= SLO_S for at, took, _ in answered) / (end - start)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("seed", [1, 2])
def test_at_three_times_the_capacity_goodput_stays_and_what_is_let_in_is_in_time(batch, seed):
    async def main():
        capacity = batch / (CALL_S + ROW_S * batch)
        world = World(seed, batch)
        await world.run(20, 0.95 * capacity)
        peak = good(world.answered, 5, 20)
        await world.run(60, 3 * capacity)
        assert good(world.answered, 21, 79) >= 0.9 * peak
        let_in = [took for at, took, _ in world.answered if at >= 21]
        assert np.quantile(let_in, 0.99) <= SLO_S
        assert world.gone == 0, "nobody waits in vain"
        assert all(after >= 0 for _, after in world.refused)
        refused = len(world.refused)
        await world.run(20, 0.5 * capacity)
        assert not [at for at, _ in world.refused[refused:] if at > 81], "it recovers at once"

    asyncio.run(main())


def test_without_a_bound_on_latency_the_same_load_is_answered_too_late():
    """What admission is for: the queue alone lets everybody wait."""

    async def main():
        world = World(1, 1, slo_s=None)
        await world.run(30, 600)
        assert good(world.answered, 5, 29) < 0.1 * 200

    asyncio.run(main())


def test_requests_of_batch_priority_wait_for_the_others():
    async def main():
        world = World(3, 1)
        await world.run(30, 1.5 / (CALL_S + ROW_S), later_share=0.5)
        took = {later: [t for _, t, is_later in world.answered if is_later is later]
                for later in (False, True)}  # fmt: skip
        assert np.median(took[False]) < 0.2 * np.median(took[True])
        assert len(took[False]) > 0.95 * 0.75 / (CALL_S + ROW_S) * 30, "all of those are served"
        assert took[True], "what is left goes to the others"

    asyncio.run(main())


def test_the_first_calls_are_let_in_whatever_the_estimate():
    pace = Pace()
    pace.queued(0.0)
    pace.answered(1, 0.0, 100.0, waiting=True)
    assert refuse_after_s(pace, 1, 1, 0.1) is None
    assert refuse_after_s(pace, 5, 0, 0.1) is None, "no replica: held, not judged"
    assert refuse_after_s(pace, 5, 1, 0.1) == pytest.approx(599.9)


def test_idle_time_is_no_work():
    pace = Pace()
    for start in (0.0, 1000.0, 2000.0):
        pace.queued(start)
        pace.answered(1, start, start + 0.005, waiting=False)
    assert pace.call_s == pytest.approx(0.005)
