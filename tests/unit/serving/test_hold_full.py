"""Requests held while no replica is there: so many, so long; all others hear when to come back."""

import threading
import time

import httpx
import pytest
from gateway_kit import Ready, Served, gateway_of, tensors

LIMIT_S = 60


class Same:
    def predict(self, inputs):
        return {"y": inputs["x"]}


def served(**limits):
    signature = {
        "inputs": tensors(("x", "FP32", (-1, 1))),
        "outputs": tensors(("y", "FP32", (-1, 1))),
    }
    return Served(Same(), signature, {"queue": 2, "deadline_s": 2 * LIMIT_S, **limits})


def ask(url, name="s"):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
    return httpx.post(
        f"{url}/v2/models/{name}/infer", json={"inputs": [tensor]}, timeout=LIMIT_S, trust_env=False
    )


def until(what):
    end = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def asleep(running):
    """Take the replica away; returns what brings it back."""
    version = running.routes.services["s"].versions["1"]
    paths = list(version.reach.sockets)
    running.call(version.reach._on_replicas, [])
    until(lambda: not version.lane.connections)
    back = [Ready({"sundog_socket": path}) for path in paths]
    return version.lane, lambda: running.call(version.reach._on_replicas, back)


def test_a_full_hold_says_when_to_come_back_and_keeps_those_it_holds():
    with gateway_of({"s": served(hold_s=LIMIT_S)}) as running:
        lane, wake = asleep(running)
        held, answers = [], []
        for _ in range(2):
            held.append(threading.Thread(target=lambda: answers.append(ask(running.url))))
            held[-1].start()
        until(lambda: lane.waiting == 2)
        refused = ask(running.url)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "2 requests wait already" in refused.text
        assert answers == [], "nobody who is held was dropped for it"
        wake()
        for thread in held:
            thread.join(LIMIT_S)
        assert [a.status_code for a in answers] == [200, 200]


def test_who_was_held_in_vain_hears_when_to_come_back():
    with gateway_of({"s": served(hold_s=0.2)}) as running:
        asleep(running)
        refused = ask(running.url)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "no replica is ready" in refused.text


@pytest.mark.parametrize("limits", [{"hold_s": 0.2}, {"hold_s": LIMIT_S, "deadline_s": 0.2}])
def test_a_service_without_any_version_holds_as_its_spec_says(limits):
    with gateway_of({"s": served()}) as running:
        begin(running, **limits)
        refused = ask(running.url, "new")
        assert refused.status_code == 503
        assert "first one comes" in refused.text
        assert refused.headers["retry-after"]


def test_so_many_wait_for_a_first_version_and_get_their_answers():
    with gateway_of({"s": served(hold_s=LIMIT_S)}) as running:
        document = begin(running, hold_s=LIMIT_S, queue=2)
        answers = []
        waiting = [
            threading.Thread(target=lambda: answers.append(ask(running.url, "new")))
            for _ in range(2)
        ]
        for thread in waiting:
            thread.start()
        until(lambda: running.routes.services["new"].held == 2)
        assert "2 requests wait for the first version" in ask(running.url, "new").text
        there = running.routes.snapshot["services"]["s"]
        apply(running, {**document, "versions": there["versions"], "weights": there["weights"]})
        for thread in waiting:
            thread.join(LIMIT_S)
        assert [a.status_code for a in answers] == [200, 200]
        assert running.routes.services["new"].held == 0


def begin(running, **limits):
    """A service that is starting: nothing answers for it yet."""
    document = {
        **running.routes.snapshot["services"]["s"], "service": "new", "versions": {}, "weights": {},
        "state": "starting", "message": "its first one comes", **limits,
    }  # fmt: skip
    apply(running, document)
    return document


def apply(running, document):
    last = running.routes.snapshot
    services = {**last["services"], "new": document}
    running.call(
        running.routes.apply, {**last, "version": last["version"] + 1, "services": services}
    )
