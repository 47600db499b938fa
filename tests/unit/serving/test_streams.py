"""Answers in parts: from the model through a real Unix socket to whoever reads, and back when nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import numpy as np
import pytest

from sundog.serving import sockets as sockets_module
from sundog.serving.contract import Contract
from sundog.serving.gateway import lane_totals
from sundog.serving.generate import parts_of
from sundog.serving.lane import Lane, Limits, NotServed
from sundog.serving.links import HandleLink, SocketLink
from sundog.serving.runner import Runner
from sundog.serving.sockets import SocketServer
from sundog.serving.streams import WINDOW

SIGNATURE = {
    "inputs": [{"name": "n", "datatype": "INT64", "shape": [-1]}],
    "outputs": [{"name": "i", "datatype": "INT64", "shape": [-1]}],
}


class Counts:
    """Counts to n in parts; fails at 13; notes how far it came and that it was closed."""

    def __init__(self):
        self.reached = 0
        self.calls = 0
        self.closed = threading.Event()

    def predict(self, inputs):
        self.calls += 1
        return self.count(int(inputs["n"][0]))

    def count(self, n):
        try:
            for i in range(n):
                if i == 13:
                    raise ValueError("unlucky")
                self.reached = i
                yield {"i": np.array([i])}
        finally:
            self.closed.set()


class CountsAsync(Counts):
    async def count(self, n):
        try:
            for i in range(n):
                await asyncio.sleep(0)
                self.reached = i
                yield {"i": np.array([i])}
        finally:
            self.closed.set()


class Whole:
    async def predict(self, inputs):
        return {"i": inputs["n"]}


class Replica:
    """A socket server and the lane that is connected to it."""

    def __init__(self, model):
        self.model = model
        self.server = SocketServer(Runner(model, SIGNATURE))
        self.server.start()

    async def connect(self, lane):
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(
            lambda: SocketLink(lane, lambda _: None), self.server.path
        )
        while not lane.connections:
            await asyncio.sleep(0.005)


def new_lane(**limits):
    return Lane(Contract("s", "1", SIGNATURE), Limits(deadline_s=20, **limits))


def asked(lane, n, later=False):
    return parts_of(lane, lane.contract.parse_rows({"n": n})[0], later)


async def numbers(lane, n):
    return [int(np.frombuffer(part[0][2], "<i8")[0]) async for part in asked(lane, n)]


@pytest.fixture
def replica(monkeypatch):
    monkeypatch.setattr(sockets_module, "_socket_parent", lambda: None)
    made = []

    def start(model):
        made.append(Replica(model))
        return made[-1]

    yield start
    for each in made:
        if each.server.thread.is_alive():
            each.server._loop.call_soon_threadsafe(each.server._stop.set)
            each.server.thread.join(5)


@pytest.mark.parametrize("kind", [Counts, CountsAsync])
def test_parts_come_in_order_and_streams_run_side_by_side(replica, kind):
    async def main():
        lane, made = new_lane(), replica(kind())
        await made.connect(lane)
        assert await numbers(lane, 5) == [0, 1, 2, 3, 4]
        assert await asyncio.gather(*(numbers(lane, n) for n in range(13))) == [
            list(range(n)) for n in range(13)
        ]
        assert lane.stats.success_count == 14
        assert lane.under_way == 0
        # The one without any part had no first one.
        assert sum(lane.stats.first.counts) == 13

    asyncio.run(main())


def test_many_more_parts_than_the_window_all_arrive(replica):
    async def main():
        lane, made = new_lane(), replica(CountsAsync())
        await made.connect(lane)
        assert await numbers(lane, 20 * WINDOW) == list(range(20 * WINDOW))

    asyncio.run(main())


def test_a_slow_reader_holds_the_model_back_and_leaving_ends_it(replica):
    async def main():
        lane, made = new_lane(), replica(CountsAsync())
        await made.connect(lane)
        parts = asked(lane, 100_000)
        await anext(parts)
        await asyncio.sleep(0.3)
        assert made.model.reached <= 2 * WINDOW
        await parts.aclose()
        assert await asyncio.to_thread(made.model.closed.wait, 10)
        assert lane.under_way == 0

    asyncio.run(main())


def test_a_stream_that_is_left_takes_nothing_back_of_what_has_come(replica):
    async def main():
        lane, made = new_lane(queue=1), replica(CountsAsync())
        await made.connect(lane)
        parts = asked(lane, 100_000)
        await anext(parts)
        with pytest.raises(NotServed):
            await numbers(lane, 1)
        assert lane_totals(lane)["arrivals"] == 2
        await parts.aclose()
        assert lane_totals(lane)["arrivals"] == 2
        assert await numbers(lane, 1) == [0]
        assert lane_totals(lane)["arrivals"] == 3

    asyncio.run(main())


class Waits(CountsAsync):
    """Begins nothing before it may."""

    def __init__(self):
        super().__init__()
        self.may, self.began = threading.Event(), []

    async def count(self, n):
        while not self.may.is_set():
            await asyncio.sleep(0.01)
        self.began.append(n)
        yield {"i": np.array([n])}


async def until(check):
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


def test_streams_that_may_wait_begin_behind_those_that_may_not(replica):
    async def main():
        lane, made = new_lane(queue=2), replica(Waits())
        await made.connect(lane)
        first = asyncio.ensure_future(numbers(lane, 1))
        await until(lambda: made.model.calls == 1)
        later = asyncio.ensure_future(anext(asked(lane, 2, later=True)))
        await until(lambda: lane.later_streams == 1)
        with pytest.raises(NotServed):
            await anext(asked(lane, 9, later=True))
        second = asyncio.ensure_future(numbers(lane, 3))  # has room, though `later` came before
        await until(lambda: made.model.calls == 2)
        assert lane_totals(lane)["queued"] == 1
        made.model.may.set()
        await asyncio.gather(first, second, later)
        assert made.model.began[2:] == [2]
        assert (lane.later_streams, lane.firsts.waiting) == (0, 0)

    asyncio.run(main())


def test_a_stream_that_may_wait_waits_no_longer_than_its_deadline(replica):
    async def main():
        lane, made = new_lane(), replica(Waits())
        await made.connect(lane)
        first = asyncio.ensure_future(numbers(lane, 1))
        await until(lambda: made.model.calls == 1)
        lane.limits.deadline_s = 0.2
        with pytest.raises(NotServed) as caught:
            await anext(asked(lane, 2, later=True))
        assert caught.value.status == 504
        made.model.may.set()
        await first
        assert lane.later_streams == 0

    asyncio.run(main())


def test_streams_are_refused_while_first_parts_come_later_than_promised(replica):
    async def main():
        lane, made = new_lane(first_s=0.05), replica(Waits())
        await made.connect(lane)
        waiting = [asyncio.ensure_future(numbers(lane, n)) for n in range(4)]
        await until(lambda: made.model.calls == 4)
        await asyncio.sleep(0.2)
        made.model.may.set()
        await asyncio.gather(*waiting)
        made.model.may.clear()
        waiting = [asyncio.ensure_future(numbers(lane, n)) for n in range(2)]
        await until(lambda: made.model.calls == 6)
        with pytest.raises(NotServed) as caught:
            await anext(asked(lane, 9))
        assert caught.value.status == 503
        assert caught.value.retry_after_s
        lane.limits.first_s = None
        assert lane.firsts.mean_s < lane.limits.deadline_s / 2
        waiting.append(asyncio.ensure_future(numbers(lane, 7)))
        await until(lambda: made.model.calls == 7)
        made.model.may.set()
        await asyncio.gather(*waiting)

    asyncio.run(main())


def test_one_stream_too_many_is_refused_alone(replica, monkeypatch):
    monkeypatch.setattr(sockets_module, "MAX_STREAMS", 2)

    async def main():
        lane, made = new_lane(), replica(CountsAsync())
        await made.connect(lane)
        streams = [asked(lane, 200) for _ in range(2)]
        for parts in streams:
            await anext(parts)
        with pytest.raises(NotServed) as caught:
            await numbers(lane, 1)
        assert caught.value.status == 503
        assert caught.value.retry_after_s
        for parts in streams:
            assert len([part async for part in parts]) == 199
        assert await numbers(lane, 1) == [0], "there is room again"

    asyncio.run(main())


def test_a_connection_that_breaks_ends_the_model_too(replica):
    async def main():
        lane, made = new_lane(), replica(CountsAsync())
        await made.connect(lane)
        parts = asked(lane, 100_000)
        await anext(parts)
        lane.connections[0].drop()
        with pytest.raises(NotServed, match="lost while it answered"):
            async for _ in parts:
                pass
        assert await asyncio.to_thread(made.model.closed.wait, 10)

    asyncio.run(main())


@pytest.mark.parametrize(("idempotent", "calls"), [(True, 2), (False, 1)])
def test_only_what_gave_no_part_is_asked_again(replica, idempotent, calls):
    class Hangs(CountsAsync):
        async def count(self, n):
            if self.calls == 1:
                await asyncio.sleep(60)
            yield {"i": np.array([7])}

    async def main():
        lane, made = new_lane(idempotent=idempotent), replica(Hangs())
        await made.connect(lane)
        asking = asyncio.ensure_future(numbers(lane, 1))
        while not made.model.calls:
            await asyncio.sleep(0.005)
        lane.connections[0].drop()
        await asyncio.sleep(0.05)
        await made.connect(lane)
        if idempotent:
            assert await asking == [7]
        else:
            with pytest.raises(NotServed):
                await asking
        assert made.model.calls == calls

    asyncio.run(main())


def test_a_fault_comes_after_the_parts_before_it(replica):
    async def main():
        lane, made = new_lane(), replica(Counts())
        await made.connect(lane)
        parts = asked(lane, 20)
        assert len([await anext(parts) for _ in range(13)]) == 13
        with pytest.raises(NotServed, match="ValueError: unlucky"):
            await anext(parts)
        assert await numbers(lane, 3) == [0, 1, 2], "the replica goes on"

    asyncio.run(main())


def test_a_model_that_answers_whole_has_one_part(replica):
    async def main():
        lane, made = new_lane(), replica(Whole())
        await made.connect(lane)
        assert await numbers(lane, 4) == [4]

    asyncio.run(main())


def test_no_part_in_time_is_a_timeout(replica):
    class Slow(CountsAsync):
        async def count(self, n):
            with contextlib.closing(self):
                yield {"i": np.array([0])}
                await asyncio.sleep(60)

        def close(self):
            self.closed.set()

    async def main():
        lane, made = new_lane(), replica(Slow())
        lane.limits.deadline_s = 0.3
        await made.connect(lane)
        with pytest.raises(NotServed) as caught:
            await numbers(lane, 4)
        assert caught.value.status == 504
        assert await asyncio.to_thread(made.model.closed.wait, 10)

    asyncio.run(main())


class Served:
    """Stands for Serve's handle: the replica's own methods."""

    def __init__(self, model):
        self.runner = Runner(model, SIGNATURE)

    async def stream(self, frame):
        from sundog.serving import frames

        [call] = frames.Reader().feed(frame)
        async for buffers in self.runner.parts(call.meta, call.body):
            yield b"".join(bytes(b) for b in buffers)


def test_the_handle_carries_parts_too():
    async def main():
        lane = new_lane()
        lane.connections.append(HandleLink(lane, Served(Counts()), 2))
        assert await numbers(lane, 5) == [0, 1, 2, 3, 4]
        with pytest.raises(NotServed, match="unlucky"):
            await numbers(lane, 20)
        served = Served(CountsAsync())
        lane.connections[:] = [HandleLink(lane, served, 2)]
        parts = asked(lane, 100_000)
        await anext(parts)
        await asyncio.sleep(0.2)
        assert served.runner._model.reached <= 2 * WINDOW
        await parts.aclose()
        assert await asyncio.to_thread(served.runner._model.closed.wait, 10)

    asyncio.run(main())
