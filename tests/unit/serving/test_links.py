"""A gateway's routes and a replica's socket server, joined by a real Unix socket, without Ray."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from gateway_kit import Ready, reaching

from sundog.serving import frames
from sundog.serving import sockets as sockets_module
from sundog.serving.contract import BadRequest, Contract
from sundog.serving.generate import parts_of
from sundog.serving.lane import Lane, Limits, NotServed
from sundog.serving.links import HandleLink
from sundog.serving.routes import Routes
from sundog.serving.runner import Runner
from sundog.serving.sockets import SocketServer

SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}


class Scale:
    def __init__(self, factor):
        self.factor = factor
        self.calls = 0

    def predict(self, inputs):
        self.calls += 1
        inputs["x"] *= self.factor  # models may write into what they are given
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return {"y": inputs["x"]}


class Serve:
    """Stands for Serve's long poll: says which replicas are ready."""

    def __init__(self):
        self.listeners = {}

    async def watch(self, app, deployment, on_change):
        self.listeners[app] = on_change
        await asyncio.Event().wait()

    def say(self, app, *servers):
        self.listeners[app]([Ready({"sundog_socket": s.path}) for s in servers])


def snapshot(version, **services):
    return {"epoch": 1, "version": version, "services": services, "keys": []}


def service(*versions, active=None):
    return {
        "service": "s", "model": "m", "state": "ready", "message": "",
        "versions": {
            v: {"app": f"s--v{v}", "deployment": "Model", "kind": "python", "signature": SIGNATURE}
            for v in versions
        },
        "weights": {active or versions[-1]: 1.0},
        "deadline_s": 10, "queue": 1000, "batch": 64, "max_body": 1000, "idempotent": True,
    }  # fmt: skip


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Make socket servers; all are gone afterwards."""
    monkeypatch.setattr(sockets_module, "_socket_parent", lambda: None)
    made = []

    def start(factor):
        server = SocketServer(Runner(Scale(factor), SIGNATURE))
        server.start()
        made.append(server)
        return server

    yield start
    for server in made:
        if server.thread.is_alive():
            server._loop.call_soon_threadsafe(server._stop.set)
            server.thread.join(5)


class Handle:
    """Stands for Serve's handle of one replica."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = 0

    async def infer(self, frame):
        self.asked += 1
        return await self.answer(frame)

    async def stream(self, frame):
        yield await self.answer(frame)


async def doubled(frame):
    [call] = frames.Reader().feed(frame)
    return b"".join(Runner(Scale(2.0), SIGNATURE).run(call.meta, call.body))


def lane_over(handle, **limits):
    made = Lane(Contract("s", "1", SIGNATURE), Limits(**limits))
    made.connections.append(HandleLink(made, handle, 1))
    return made


def test_the_deadline_holds_over_the_handle_and_its_slot_comes_back(monkeypatch):
    async def main():
        async def hangs(frame):
            if handle.asked == 1:
                await asyncio.Event().wait()
            return await doubled(frame)

        handle = Handle(hangs)
        lane = lane_over(handle, deadline_s=0.1)
        parsed = lane.contract.read(body([1.0, 2.0]))
        async with asyncio.timeout(60):
            with pytest.raises(NotServed) as caught:
                await lane.call(parsed)
        assert caught.value.status == 504
        assert (lane.connections[0].free, lane.under_way) == (1, 0)
        lane.limits.deadline_s = 60
        [(_, _, raw)] = await lane.call(parsed)
        assert np.frombuffer(raw, "<f4").tolist() == [2.0, 4.0]

    asyncio.run(main())


@pytest.mark.parametrize(
    "said",
    [b"", b"no frame at all", b"".join(frames.pack(frames.ANSWER, 0, [], [])) * 2, "text", None,
     b"".join(frames.pack(frames.ANSWER, 0, 7, [])), b"".join(frames.pack(frames.FAULT, 0, 7)),
     b"".join(frames.pack(frames.FAULT, 0))],
)  # fmt: skip
def test_a_broken_answer_over_the_handle_is_not_the_callers_fault(said):
    async def broken(frame):
        return said

    async def main():
        lane = lane_over(Handle(broken))
        parsed = lane.contract.read(body([1.0, 2.0]))
        async with asyncio.timeout(60):
            with pytest.raises(NotServed) as caught:
                await lane.call(parsed)
            assert caught.value.status == 500
            assert lane.connections[0].free == 1
            with pytest.raises(NotServed) as caught:
                [part async for part in parts_of(lane, parsed)]
            assert caught.value.status == 500
        assert lane.connections[0].load == 0

    asyncio.run(main())


def body(*rows):
    flat = [v for row in rows for v in row]
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": flat}
    import orjson

    return orjson.dumps({"inputs": [tensor]})


async def ask(routes, *rows, version=None):
    _, chosen = routes.find_version("s", version)
    outputs = await chosen.lane.call(chosen.contract.read(body(*rows)))
    return np.frombuffer(outputs[0][2], "<f4").reshape(-1, 2).tolist()


async def until(check):
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


def lane(routes, version="1"):
    return routes.services["s"].versions[version].lane


def test_requests_travel_in_shared_frames_and_come_back_each_to_its_own(started):
    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        routes.apply(snapshot(1, s=service("1")))
        await asyncio.sleep(0)
        serve.say("s--v1", started(2.0))
        answers = await asyncio.gather(*(ask(routes, [i, i + 1]) for i in range(200)))
        assert answers == [[[2.0 * i, 2.0 * i + 2]] for i in range(200)]
        assert lane(routes).stats.executions < 200

    asyncio.run(main())


def test_large_frames_cross_in_pieces(started):
    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        routes.apply(snapshot(1, s=service("1")))
        await asyncio.sleep(0)
        serve.say("s--v1", started(2.0))
        rows = [[float(i), 1.0] for i in range(100_000)]
        assert await ask(routes, *rows) == [[2 * a, 2.0] for a, _ in rows]

    asyncio.run(main())


def test_a_failing_call_fails_alone(started):
    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        routes.apply(snapshot(1, s=service("1")))
        await asyncio.sleep(0)
        serve.say("s--v1", started(2.0))
        answers = await asyncio.gather(
            *(ask(routes, [float(x), 1.0]) for x in (1, -1, 3)), return_exceptions=True
        )
        assert answers[0] == [[2.0, 2.0]]
        assert answers[2] == [[6.0, 2.0]]
        assert (answers[1].status, "ValueError: negative" in answers[1].message) == (500, True)

    asyncio.run(main())


def test_a_draining_replica_answers_and_lets_go_and_another_takes_over(started):
    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        routes.apply(snapshot(1, s=service("1")))
        await asyncio.sleep(0)
        first, second = started(2.0), started(2.0)
        serve.say("s--v1", first, second)
        await until(lambda: len(lane(routes).connections) == 2)
        asked = [asyncio.ensure_future(ask(routes, [float(i), 0.0])) for i in range(50)]
        serve.say("s--v1", second)
        await first.drain()
        assert not first.folder.exists()
        assert [a[0][0] for a in await asyncio.gather(*asked)] == [2.0 * i for i in range(50)]
        assert len(lane(routes).connections) == 1

    asyncio.run(main())


def test_a_replica_that_vanishes_is_replaced_without_a_failed_request(started):
    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        routes.apply(snapshot(1, s=service("1")))
        await asyncio.sleep(0)
        first = started(2.0)
        serve.say("s--v1", first)
        await until(lambda: lane(routes).connections)
        asked = [asyncio.ensure_future(ask(routes, [float(i), 0.0])) for i in range(20)]
        await asyncio.sleep(0)
        for peer in list(first.peers):
            first._loop.call_soon_threadsafe(peer.transport.abort)
        first._loop.call_soon_threadsafe(first._stop.set)
        serve.say("s--v1", started(2.0))
        assert [a[0][0] for a in await asyncio.gather(*asked)] == [2.0 * i for i in range(20)]

    asyncio.run(main())


def test_routes_move_and_the_old_version_finishes(started):
    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        routes.apply(snapshot(1, s=service("1")))
        await asyncio.sleep(0)
        serve.say("s--v1", started(2.0))
        routes.apply(snapshot(2, s=service("1", "2", active="1")))
        await asyncio.sleep(0)
        serve.say("s--v2", started(3.0))
        await until(lambda: lane(routes, "2").connections)
        old = asyncio.ensure_future(ask(routes, [1.0, 1.0]))
        await asyncio.sleep(0)
        assert await ask(routes, [1.0, 1.0], version="2") == [[3.0, 3.0]]
        routes.apply(snapshot(3, s=service("2")))
        assert await ask(routes, [1.0, 1.0]) == [[3.0, 3.0]]
        assert await old == [[2.0, 2.0]]
        with pytest.raises(BadRequest, match="version '1' of 's' is not served"):
            routes.find_version("s", "1")
        assert not routes.apply(snapshot(2)), "an older snapshot is refused"
        routes.apply(snapshot(4))
        with pytest.raises(BadRequest, match="no service 's'"):
            routes.find("s")

    asyncio.run(main())


def test_a_route_that_is_not_understood_holds_up_no_other_service(started, caplog):
    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        odd = service("1")
        odd["versions"]["1"]["signature"] = {
            "inputs": [{"name": "x", "datatype": "?", "shape": []}]
        }
        routes.apply(snapshot(1, a=odd, b={"service": "b"}, s=service("1")))
        await asyncio.sleep(0)
        serve.say("s--v1", started(2.0))
        assert await ask(routes, [1.0, 1.0]) == [[2.0, 2.0]]
        routes.apply(snapshot(2, s={**service("1"), "versions": {"1": {}}}))
        assert await ask(routes, [1.0, 1.0]) == [[2.0, 2.0]], "the old one stays"
        assert routes.version == (1, 2)
        assert caplog.text.count("is not understood") == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64,
     b"".join(frames.pack(frames.ANSWER, 1, [], [])),
     frames._HEAD.pack(b"SD", frames.VERSION, frames.INFER, 1, 0, 2**60)],
)  # fmt: skip
def test_a_replica_hangs_up_on_what_is_no_call(started, noise):
    async def main():
        server = started(2.0)
        reader, writer = await asyncio.open_unix_connection(server.path)
        writer.write(noise)
        async with asyncio.timeout(10):
            try:
                rest = await reader.read()
            except ConnectionError:
                rest = b""
        assert len(rest) < 200
        writer.close()
        again, writer = await asyncio.open_unix_connection(server.path)
        assert await again.readexactly(2) == b"SD"
        writer.close()

    asyncio.run(main())


class Slow(Scale):
    """Takes `pause_s`."""

    pause_s = 0.0

    def predict(self, inputs):
        time.sleep(self.pause_s)
        return super().predict(inputs)


def test_a_slow_replica_is_left_out_and_comes_back_when_it_is_well(tmp_path, monkeypatch):
    monkeypatch.setattr(sockets_module, "_socket_parent", lambda: None)
    models = [Slow(2.0), Slow(2.0)]
    servers = [SocketServer(Runner(m, SIGNATURE)) for m in models]
    for server in servers:
        server.start()

    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        routes.apply(snapshot(1, s=service("1")))
        await asyncio.sleep(0)
        serve.say("s--v1", *servers)
        await until(lambda: len(lane(routes).connections) == 2)
        for _ in range(20):  # one after the other: both have their turn
            await ask(routes, [1.0, 2.0])
        assert models[0].calls == models[1].calls == 10
        models[1].pause_s = 0.15
        before = models[1].calls
        for _ in range(60):
            await ask(routes, [1.0, 2.0])
        assert models[1].calls - before <= 5, "left out once it was seen"
        assert models[0].calls >= 65
        models[1].pause_s = 0.0
        seen = models[1].calls
        async with asyncio.timeout(30):
            while models[1].calls < seen + 10:
                await ask(routes, [1.0, 2.0])
                await asyncio.sleep(0.01)

    asyncio.run(main())
    for server in servers:
        server._loop.call_soon_threadsafe(server._stop.set)
        server.thread.join(5)


def test_one_that_is_left_out_serves_when_it_is_the_only_one(started):
    async def main():
        serve = Serve()
        routes = Routes(reaching(serve.watch))
        routes.apply(snapshot(1, s=service("1")))
        await asyncio.sleep(0)
        one, two = started(2.0), started(2.0)
        serve.say("s--v1", one, two)
        await until(lambda: len(lane(routes).connections) == 2)
        lane(routes).connections[0].health.leave_out(lane(routes).now())
        lane(routes).left_out = 1
        first = lane(routes).connections[0]
        serve.say("s--v1", *(s for s in (one, two) if s.path in routes_of(first, routes)))
        await until(lambda: lane(routes).connections == [first])
        assert await ask(routes, [1.0, 2.0]) == [[2.0, 4.0]]

    asyncio.run(main())


def routes_of(connection, routes):
    """The path that a connection leads to."""
    links = routes.services["s"].versions["1"].reach._links
    return [path for path, link in links.items() if link is connection]
