"""A gateway and a replica of different nodes, joined by real TLS on loopback, without Ray; and strangers."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from gateway_kit import Ready, Served, reaching, route_of, tensors
from ray.serve.exceptions import RayServeException

from sundog.errors import ServiceError
from sundog.rayapi import serve_counts
from sundog.security.peers import Identity, fingerprint
from sundog.serving import sockets as sockets_module
from sundog.serving.inbound import CERTIFICATE_KEY, Inbound
from sundog.serving.lane import NotServed
from sundog.serving.links import IN_FLIGHT
from sundog.serving.reach import data_path
from sundog.serving.routes import Routes
from sundog.serving.runner import Runner
from sundog.serving.sockets import Elsewhere, SocketServer

SIGNATURE = {"inputs": tensors(("x", "FP32", (-1, 2))), "outputs": tensors(("y", "FP32", (-1, 2)))}
REFUSED = (ssl.SSLError, ConnectionError)
GATEWAY, REPLICA = "node-of-the-gateway", "node-of-the-replica"


class Double:
    def predict(self, inputs):
        return {"y": 2 * inputs["x"]}


class World:
    """A gateway's routes and door in this loop, a replica in a thread; what Serve would tell is said
    by `tell_*`."""

    def __init__(self):
        self.identity, self.me = Identity.make("gateway"), Identity.make("replica")
        self.door = Inbound(self.identity, "127.0.0.1")
        self.handles = []
        self.routes = Routes(reaching(self._watch, GATEWAY, self.door, self._handle))
        self._listeners = []
        self._told, self._gateways = threading.Event(), None
        elsewhere = Elsewhere(self.me, REPLICA, self._watch_gateways)
        self.server = SocketServer(Runner(Double(), SIGNATURE), elsewhere=elsewhere)
        self.server.start()
        self._told.wait(20)

    async def _watch(self, app, deployment, on_change):
        self._listeners.append(on_change)
        await asyncio.Event().wait()

    def _handle(self, app, deployment):
        self.handles.append((app, deployment))
        return object()

    async def _watch_gateways(self, on_change):
        self._gateways = on_change
        self._told.set()
        await asyncio.Event().wait()

    def tell_gateway(self, *certificates):
        replicas = [
            Ready({"sundog_socket": self.server.path, CERTIFICATE_KEY: c}, REPLICA)
            for c in certificates
        ]
        for listener in self._listeners:
            listener(replicas)

    def tell_replica(self, *doors):
        gateways = [Ready(door.metadata(), GATEWAY) for door in doors]
        self.server._loop.call_soon_threadsafe(self._gateways, gateways)

    @property
    def lane(self):
        return self.routes.services["s"].versions["1"].lane

    async def ask(self):
        _, version = self.routes.find_version("s", None)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
        parsed = version.contract.read(orjson.dumps({"inputs": [tensor]}))
        [(_, _, raw)] = await version.lane.call(parsed)
        return np.frombuffer(raw, "<f4").tolist()


def run(scenario, monkeypatch):
    monkeypatch.setattr(sockets_module, "_socket_parent", lambda: None)

    async def main():
        world = World()
        serving = asyncio.create_task(world.door.serve_forever())
        document = route_of("s", Served(None, SIGNATURE))
        world.routes.apply({"epoch": 1, "version": 1, "services": {"s": document}, "keys": []})
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(60):
                await scenario(world)
        finally:
            serving.cancel()
            if world.server.thread.is_alive():
                world.server._loop.call_soon_threadsafe(world.server._stop.set)
            await asyncio.to_thread(world.server.thread.join, 5)

    asyncio.run(main())


async def until(check):
    while not check():
        await asyncio.sleep(0.01)


async def joined(world):
    """Serve has told each of the other, and the replica has called."""
    world.tell_gateway(world.me.certificate)
    world.tell_replica(world.door)
    await until(lambda: kinds(world.lane) == ["SocketLink"])


def kinds(lane):
    return [type(c).__name__ for c in lane.connections]


def test_all_replicas_of_a_model_are_let_in_though_they_have_the_same_name():
    async def main():
        gateway, arrived = Identity.make("gateway"), asyncio.Queue()
        replicas = [Identity.make("replica of digits@1") for _ in range(3)]
        door = Inbound(gateway, "127.0.0.1")
        for number, replica in enumerate(replicas):
            door.expect(replica.certificate, lambda n=number: Arrives(n, arrived))
        serving = asyncio.create_task(door.serve_forever())
        await asyncio.sleep(0)  # it listens
        host, _, port = door.address.rpartition(":")
        async with asyncio.timeout(30):
            for replica in replicas:
                await asyncio.get_running_loop().create_connection(
                    asyncio.Protocol, host, int(port), ssl=replica.client(gateway.certificate)
                )
            assert {await arrived.get() for _ in replicas} == {0, 1, 2}
        serving.cancel()

    asyncio.run(main())


class Arrives(asyncio.Protocol):
    def __init__(self, number, queue):
        self.number, self.queue = number, queue

    def connection_made(self, transport):
        self.queue.put_nowait(self.number)


def test_where_only_direct_ways_are_allowed_nothing_goes_over_the_handle(monkeypatch, caplog):
    monkeypatch.setenv("SUNDOG_DATA_PATH", "direct")

    async def scenario(world):
        world.tell_gateway(world.me.certificate)
        assert kinds(world.lane) == []
        assert world.handles == []
        assert "1 replica(s) are ready that do not call this gateway" in world.lane.waiting_message
        assert "direct allows no other way" in caplog.text
        world.lane.limits.hold_s = 0.0
        sweeping = asyncio.create_task(world.routes.sweep_forever())
        with pytest.raises(NotServed, match="is the network between nodes open"):
            await world.ask()
        sweeping.cancel()
        world.tell_replica(world.door)
        await until(lambda: kinds(world.lane) == ["SocketLink"])
        assert await world.ask() == [2.0, 4.0]
        assert world.lane.waiting_message == "no replica is ready"
        world.lane.connections[0].drop()
        assert world.handles == []

    run(scenario, monkeypatch)


def test_an_unknown_way_is_refused(monkeypatch):
    monkeypatch.setenv("SUNDOG_DATA_PATH", "hanlde")
    with pytest.raises(ServiceError, match="SUNDOG_DATA_PATH=hanlde") as refused:
        data_path()
    assert "socket, direct or handle" in refused.value.fix


class Status:
    """What serve.status() says, in turn; the last goes on."""

    def __init__(self, *said):
        self.said = list(said)

    def __call__(self):
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(said, Exception):
            raise said
        deployments = {"Model": SimpleNamespace(replica_states=said)}
        return SimpleNamespace(applications={"s--v1": SimpleNamespace(deployments=deployments)})


def test_replicas_are_counted_by_serves_public_status_alone(monkeypatch):
    monkeypatch.setattr(serve_counts, "LOOK_S", 0.001)
    status = Status(
        {"STARTING": 2}, {"RUNNING": 2, "STARTING": 1}, {"RUNNING": 2},
        RayServeException("away"), {"RUNNING": 1, "PENDING_MIGRATION": 2}, {"STOPPING": 1},
    )  # fmt: skip
    monkeypatch.setattr(serve_counts.serve, "status", status)
    monkeypatch.setenv("SUNDOG_DATA_PATH", "handle")
    seen = []

    async def scenario(world):
        def on_change(replicas):
            seen.append(len(replicas))
            world.routes.services["s"].versions["1"].reach._on_replicas(replicas)
            seen.append(sum(c.free for c in world.lane.connections) // IN_FLIGHT)

        watching = asyncio.create_task(serve_counts.watch("s--v1", "Model", on_change))
        await until(lambda: len(seen) == 8)
        watching.cancel()
        assert seen == [0, 0, 2, 2, 3, 3, 0, 0]
        unknown = asyncio.create_task(serve_counts.watch("t--v1", "Model", on_change))
        await asyncio.sleep(0.05)
        unknown.cancel()
        assert len(seen) == 8, "no word is no answer"

    run(scenario, monkeypatch)


def test_a_replica_of_another_node_calls_and_answers(monkeypatch):
    async def scenario(world):
        world.tell_gateway(world.me.certificate)
        assert kinds(world.lane) == ["HandleLink"], "until it has called"
        world.tell_replica(world.door)
        await until(lambda: kinds(world.lane) == ["SocketLink"])
        assert await world.ask() == [2.0, 4.0]

    run(scenario, monkeypatch)


def test_a_replica_that_calls_before_it_is_known_calls_again(monkeypatch):
    async def scenario(world):
        world.tell_gateway(Identity.make("another").certificate)
        world.tell_replica(world.door)
        await asyncio.sleep(0.3)
        assert kinds(world.lane) == ["HandleLink"]
        world.tell_gateway(world.me.certificate)
        await until(lambda: kinds(world.lane) == ["SocketLink"])
        assert await world.ask() == [2.0, 4.0]

    run(scenario, monkeypatch)


def test_a_lost_connection_is_replaced_and_bridged(monkeypatch):
    async def scenario(world):
        await joined(world)
        [first] = world.lane.connections
        first.drop()
        await until(lambda: kinds(world.lane) == ["HandleLink"])
        await until(lambda: kinds(world.lane) == ["SocketLink"])
        assert world.lane.connections[0] is not first
        assert await world.ask() == [2.0, 4.0]

    run(scenario, monkeypatch)


def test_a_replica_that_leaves_finishes_and_calls_no_more(monkeypatch):
    async def scenario(world):
        await joined(world)
        await world.server.drain()
        assert not world.server.peers
        assert kinds(world.lane) == ["HandleLink"], "Serve has not said yet that it is gone"
        world.tell_gateway()
        assert world.lane.connections == []
        with pytest.raises(REFUSED):
            await asyncio.to_thread(greet, world.door.address, world.me, world.identity)

    run(scenario, monkeypatch)


def test_a_gateway_that_serve_names_no_more_is_not_called_again(monkeypatch):
    async def scenario(world):
        await joined(world)
        world.tell_replica()
        await asyncio.sleep(0.05)
        assert await world.ask() == [2.0, 4.0], "what is there stays"
        world.lane.connections[0].drop()
        await asyncio.sleep(0.5)
        assert kinds(world.lane) == ["HandleLink"]

    run(scenario, monkeypatch)


def greet(address, identity, gateway, context=None):
    """Connect as `identity` and read what the gateway says: nothing, to those it does not know."""
    host, _, port = address.rpartition(":")
    context = context or identity.client(gateway.certificate)
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain) as peer,
    ):
        peer.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        if not peer.recv(1):
            raise ConnectionResetError("closed")


def test_nobody_else_gets_in(monkeypatch):
    async def scenario(world):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(greet, world.door.address, world.me, world.identity)
        await joined(world)
        stranger = Identity.make("stranger")
        with pytest.raises(REFUSED):
            await asyncio.to_thread(greet, world.door.address, stranger, world.identity)
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        with pytest.raises(REFUSED):
            await asyncio.to_thread(greet, world.door.address, None, None, nobody)
        old = world.me.client(world.identity.certificate)
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(greet, world.door.address, None, None, old)
        host, _, port = world.door.address.rpartition(":")
        silent = [socket.create_connection((host, int(port)), 10) for _ in range(5)]
        silent[0].sendall(b"\x00" * 4096)
        assert await world.ask() == [2.0, 4.0], "the others are served"
        assert kinds(world.lane) == ["SocketLink"]
        for one in silent:
            one.close()

    run(scenario, monkeypatch)


def test_a_replica_speaks_with_no_gateway_but_those_it_was_told_of(monkeypatch):
    async def scenario(world):
        false = Inbound(Identity.make("false"), "127.0.0.1")
        came = []
        false.expect(world.me.certificate, lambda: came.append(1) or asyncio.Protocol())
        serving = asyncio.create_task(false.serve_forever())
        told = {**false.metadata(), CERTIFICATE_KEY: world.identity.certificate}
        gateways = [Ready(told, GATEWAY)]
        world.server._loop.call_soon_threadsafe(world._gateways, gateways)
        await asyncio.sleep(0.5)
        assert not came
        serving.cancel()

    run(scenario, monkeypatch)


def test_a_certificate_is_known_by_its_bytes():
    made = Identity.make("one")
    assert fingerprint(made.certificate) == fingerprint(ssl.PEM_cert_to_DER_cert(made.certificate))
    assert "PRIVATE" not in repr(made)
