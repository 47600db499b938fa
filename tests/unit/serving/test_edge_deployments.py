"""The deployments Gateway and Edge as Serve makes them, with its news and control's handed to them by the
test: two gateways, the edge's HAProxy, a replica, and what a caller sees when a gateway leaves."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from dataclasses import dataclass

import httpx
import pytest
from gateway_kit import Served, route_of, tensors

from sundog.errors import ServiceError
from sundog.rayapi.local import free_ports
from sundog.serving import edge, gateway, sockets
from sundog.serving.runner import Runner
from sundog.serving.sockets import SocketServer

SIGNATURE = {
    "inputs": tensors(("x", "FP32", (-1, 2))),
    "outputs": tensors(("y", "FP32", (-1, 2))),
}
BODY = {"x": [1.0, 2.0]}


class Same:
    def predict(self, inputs):
        return {"y": inputs["x"]}


@dataclass
class Replica:
    replica_id: str
    metadata: dict
    node_id: str = "here"


class World:
    """What Serve and control say, and to whom."""

    def __init__(self):
        self.replicas = {}
        self.watchers = {}

    async def watch(self, app, deployment, on_change):
        loop = asyncio.get_running_loop()
        self.watchers.setdefault((app, deployment), []).append((loop, on_change))
        on_change(self.replicas.get((app, deployment), []))
        await asyncio.Event().wait()

    def tell(self, app, deployment, replicas):
        self.replicas[app, deployment] = replicas
        for loop, on_change in self.watchers.get((app, deployment), []):
            if not loop.is_closed():
                loop.call_soon_threadsafe(on_change, replicas)

    async def snapshots(self, name, seen):
        services = {"same": route_of("same", Served(Same(), SIGNATURE))}
        yield {"epoch": 1, "version": 1, "services": services, "keys": []}
        await asyncio.Event().wait()


async def nothing(*_):
    await asyncio.Event().wait()


@pytest.fixture
def world(monkeypatch, tmp_path):
    made = World()
    monkeypatch.setattr(sockets, "_socket_parent", lambda: None)
    monkeypatch.setattr(edge.session, "sockets_dir", lambda: None)
    monkeypatch.setattr(edge.tempfile, "gettempdir", lambda: "/tmp")
    for module in (gateway, edge):
        monkeypatch.setattr(module.session, "node", lambda: ("here", "127.0.0.1"))
        monkeypatch.setattr(module.serve_ports, "bind_to_node", lambda: None)
        monkeypatch.setattr(module, "control_snapshots", made.snapshots)
    monkeypatch.setattr(gateway.serve_targets, "watch", made.watch)
    monkeypatch.setattr(gateway, "report_forever", nothing)
    monkeypatch.setenv("SUNDOG_ACCESS_LOG", "")
    monkeypatch.setenv("SUNDOG_GATEWAY_GRPC", f"127.0.0.1:{free_ports(1)[0]}")
    return made


def gone(deployment):
    """What Serve does with a replica that leaves."""
    leaving = deployment.__del__()
    assert inspect.isawaitable(leaving)
    asyncio.run(leaving)


def wait_for(what, check):
    end, last = time.monotonic() + 60, None
    while time.monotonic() < end:
        try:
            last = check()
        except httpx.HTTPError as error:
            last = error
        else:
            if last:
                return
        time.sleep(0.05)
    raise AssertionError(f"{what}: {last!r}")


# Python asks for it once more, when the object goes.
@pytest.mark.filterwarnings("ignore:coroutine .*__del__:RuntimeWarning")
def test_two_gateways_behind_the_edge_and_one_that_leaves(world):
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    server = SocketServer(Runner(Same(), SIGNATURE))
    server.start()
    world.tell("same", "Model", [Replica("m", {"sundog_socket": server.path})])
    config = {"address": address, "gateways": 2, "app": "a"}
    front = edge.Edge(config)
    client = httpx.Client(base_url=address, timeout=30, trust_env=False)
    try:
        wait_for("no gateway yet", lambda: client.get("/").status_code == 503)
        gateways = [gateway.Gateway(config) for _ in range(2)]
        gateways[0].reconfigure({**config, "count": 3})  # as many on two nodes more
        wait_for("six share limits", lambda: gateways[0].calls.limiter._gateways == 6)
        doors = [Replica(f"r{i}", g.record_replica_metadata()) for i, g in enumerate(gateways)]
        world.tell("a", "Gateway", doors)

        def asked():
            return client.post("/predict/same", json=BODY)

        wait_for("an answer", lambda: asked().status_code == 200)
        assert {asked().status_code for _ in range(40)} == {200}
        # Both are this process, so they have one label.
        text = client.get("/metrics").text
        assert len(labels(text)) == 1
        assert text.count("# TYPE sundog_gateway_latency") == 1
        assert all(g.check_health() is None for g in (*gateways, front))
        world.tell("a", "Gateway", doors[1:])
        gone(gateways[0])
        assert {asked().status_code for _ in range(40)} == {200}
        gone(gateways[1])
    finally:
        client.close()
        gone(front)
        server._loop.call_soon_threadsafe(server._stop.set)
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


async def dies(*_):
    await asyncio.sleep(0)
    raise OSError(28, "No space left on device")


async def dies_too(*_):
    raise OSError(28, "No space left on device")
    yield


@pytest.mark.filterwarnings("ignore:coroutine .*__del__:RuntimeWarning")
@pytest.mark.parametrize("part", ["report_forever", "follow_control", "flush_forever"])
def test_a_gateway_without_one_of_its_tasks_asks_to_be_replaced(world, monkeypatch, caplog, part):
    monkeypatch.setenv("SUNDOG_GATEWAY_GRPC", "")
    told = threading.Event()

    async def ends(*_):
        while not told.is_set():
            await asyncio.sleep(0.01)
        await dies()

    monkeypatch.setattr(gateway, part, ends)
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    made = gateway.Gateway({"address": address, "app": "a"})
    try:
        assert unhealthy(made) == ""
        told.set()
        wait_for("it is unhealthy", lambda: "No space left" in unhealthy(made))
        assert httpx.get(f"{address}/v2/health/live", trust_env=False).status_code == 200
        assert "serves on until Serve replaces it" in caplog.text
    finally:
        gone(made)


@pytest.mark.parametrize("part", ["watch", "control_snapshots"])
@pytest.mark.filterwarnings("ignore:coroutine .*__del__:RuntimeWarning")
def test_an_edge_without_news_asks_to_be_replaced(world, monkeypatch, caplog, part):
    if part == "watch":
        monkeypatch.setattr(edge.serve_targets, "watch", dies)
    else:
        monkeypatch.setattr(edge, "control_snapshots", dies_too)
    made = edge.Edge({"address": f"http://127.0.0.1:{free_ports(1)[0]}", "app": "a"})
    try:
        wait_for("it is unhealthy", lambda: "No space left" in unhealthy(made))
        assert "Serve has to replace it" in caplog.text
    finally:
        gone(made)


def unhealthy(made):
    """Why Serve would replace it; empty where it would not."""
    try:
        made.check_health()
    except ServiceError as error:
        return str(error)
    return ""


def labels(text):
    lines = text.splitlines()
    return {
        line.partition('gateway="')[2].partition('"')[0] for line in lines if "{gateway=" in line
    }
