"""A changed split reaches every gateway, and no request fails or goes back by it."""

import asyncio
import threading
import time

import httpx
from gateway_kit import Served, gateway_of, tensors

from sundog.clock import WALL
from sundog.control.snapshots import Snapshots
from sundog.serving.gateway import follow_control
from sundog.serving.routes import ServiceRoute

SIGNATURE = {"inputs": tensors(("x", "FP32", (-1, 1))), "outputs": tensors(("y", "FP32", (-1, 1)))}
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
LIMIT_S = 60


class Same:
    def predict(self, inputs):
        return {"y": inputs["x"]}


def entry(app):
    return {"app": app, "deployment": "Model", "kind": "python", "signature": SIGNATURE}


def services():
    """`s` with two versions; the second's replica is the one of a service of its own."""
    versions = {"1": entry("s"), "2": entry("second")}
    return {
        "s": Served(Same(), SIGNATURE, {"versions": versions}),
        "second": Served(Same(), SIGNATURE),
    }


class Control:
    """The actor's way of handing out snapshots."""

    def __init__(self, snapshots):
        class Method:
            async def remote(self, name, epoch, version):
                return await snapshots.wait(name, (epoch, version), 5.0)

        self.snapshot = Method()


class Caller(threading.Thread):
    """One request after the other, noting which version answered."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.answers, self.failures, self.stop = url, [], [], threading.Event()

    def run(self):
        with httpx.Client(trust_env=False, timeout=LIMIT_S) as client:
            while not self.stop.is_set():
                answer = client.post(f"{self.url}/v2/models/s/infer", json=BODY)
                if answer.status_code == 200:
                    self.answers.append((time.monotonic(), answer.json()["model_version"]))
                else:
                    self.failures.append(answer.text)

    def last(self, count):
        return {version for _, version in self.answers[-count:]}


def until(what):
    end = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_changed_split_is_everywhere_at_once_and_fails_nobody(monkeypatch):
    snapshots = Snapshots(2, 0, WALL)
    monkeypatch.setattr("ray.get_actor", lambda *name: Control(snapshots))
    with gateway_of(services()) as one, gateway_of(services()) as two:
        document = one.routes.snapshot["services"]

        def split(**weights):
            shares = {version[1:]: share for version, share in weights.items()}
            began = time.monotonic()
            snapshots.publish({**document, "s": {**document["s"], "weights": shares}}, [])
            return began

        following = []
        for gateway in (one, two):
            work = follow_control(gateway.routes, gateway.keys, [])
            following.append((gateway, gateway.call(asyncio.ensure_future, work)))
            until(lambda g=gateway: g.routes.services["s"].versions["2"].ready)
        callers = [Caller(g.url) for g in (one, two)]
        for caller in callers:
            caller.start()
        until(lambda: all(c.last(20) == {"1"} and len(c.answers) > 20 for c in callers))
        split(v2=0.5, v1=0.5)
        until(lambda: all(c.last(20) == {"1", "2"} for c in callers))
        began = split(v2=1.0)
        until(lambda: all(c.last(20) == {"2"} for c in callers))
        for caller in callers:
            caller.stop.set()
            caller.join(LIMIT_S)
            assert caller.failures == []
            last = max(at for at, version in caller.answers if version == "1")
            print(f"the last answer of version 1 came {last - began:.3f} s after the change")
            after = [version for at, version in caller.answers if at > last]
            assert set(after) == {"2"}
        for gateway, task in following:
            gateway.call(task.cancel)


def test_only_the_running_version_takes_the_turn_of_one_without_replicas():
    class Version:
        def __init__(self, ready):
            self.ready = ready

    document = {
        **{"service": "s", "max_body": 1, "version": "1", "weights": {"2": 0.25, "1": 0.75}},
        "sticky": "key",
    }
    route = ServiceRoute(document)
    route.versions = {"1": Version(False), "2": Version(True)}
    chosen = [route.choose() for _ in range(400)]
    assert abs(chosen.count(route.versions["2"]) - 100) <= 2, "no more than its share"
    route.versions = {"1": Version(True), "2": Version(False)}
    assert {route.choose() for _ in range(400)} == {route.versions["1"]}
    assert {route.choose(f"user {i}") for i in range(50)} == {route.versions["1"]}
