"""Two gateways behind one address on a real Serve: killed gateways, HAProxy and edge; limits over both."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest
import tritonclient.grpc as triton
from serving_kit import (
    WIDTH,
    ask_control,
    load,
    processes,
    register_scale,
    serve_cli,
    wait_for,
    wait_ready,
    write_deployment,
    x_body,
)

from sundog.rayapi.local import LocalRay

pytestmark = pytest.mark.long
ROWS = [[1.0] * WIDTH]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A Ray whose address has two gateways, with one service; (Ray, address)."""
    tmp = tmp_path_factory.mktemp("edge")
    ray = LocalRay(
        f"file://{tmp}/root", num_cpus=2, object_store_bytes=256 * 2**20, gateways=2,
        token_path=Path(os.environ["RAY_AUTH_TOKEN_PATH"]),
    )  # fmt: skip
    with ray:
        register_scale(ray.endpoints.root, "edge-scale", 2.0, tmp)
        file = write_deployment(
            tmp / "d.yaml", {"service": "scale", "model": "edge-scale@champion"}
        )
        serve_cli(ray, "deploy", file)
        wait_ready(ray.endpoints.gateway, "scale")
        wait_for("two gateways", lambda: len(gateways(ray)) == 2)
        yield ray, ray.endpoints.gateway


def gateways(ray):
    return {p.pid for p in processes(ray, "ServeReplica:sundog-gateway:Gateway")}


def haproxies(ray):
    config = f"-{ray.endpoints.gateway.rpartition(':')[2]}/haproxy.cfg"
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "haproxy" and config in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def both_answer(address):
    """Whether requests reach two gateways: the metrics are those of all."""
    text = httpx.get(f"{address}/metrics", trust_env=False).text
    good = [
        line for line in text.splitlines() if "requests_total{" in line and 'status="200"' in line
    ]
    return len({line.partition('gateway="')[2].partition('"')[0] for line in good}) == 2


def test_a_killed_gateway_fails_no_request_and_comes_back(world):
    ray, address = world
    before = gateways(ray)
    with load(address, "scale", {"1": 2.0}) as seen:
        wait_for("load", lambda: seen.total > 100)
        for victim in sorted(before):
            os.kill(victim, signal.SIGKILL)
            count = seen.total
            wait_for("answers go on", lambda count=count: seen.total > count + 100)
            wait_for("two again", lambda victim=victim: len(gateways(ray) - {victim}) == 2)
            wait_for("the new one answers", lambda: both_answer(address))
    assert seen.failures == []
    assert not gateways(ray) & before


def test_the_edge_is_replaced_without_a_failed_request(world):
    ray, address = world
    [edge] = processes(ray, "ServeReplica:sundog-gateway:Edge")
    masters = {p.pid for p in haproxies(ray)}
    with load(address, "scale", {"1": 2.0}) as seen:
        wait_for("load", lambda: seen.total > 50)
        edge.send_signal(signal.SIGKILL)

        def replaced():
            now = processes(ray, "ServeReplica:sundog-gateway:Edge")
            return now and now[0].pid != edge.pid and seen.total > 100

        wait_for("a new edge", replaced)
    assert seen.failures == []
    assert masters & {p.pid for p in haproxies(ray)}, "the same HAProxy goes on"


def test_a_killed_haproxy_comes_back_by_itself(world):
    ray, address = world
    wait_for("HAProxy runs", lambda: haproxies(ray))
    for process in haproxies(ray):
        process.kill()

    def answers():
        answer = httpx.post(
            f"{address}/v2/models/scale/infer", json=x_body(ROWS), timeout=5, trust_env=False
        )
        return answer.status_code == 200

    wait_for("answers", answers)


def test_grpc_passes_the_edge(world):
    ray, _ = world
    with triton.InferenceServerClient(ray.endpoints.gateway_grpc) as client:
        assert client.is_server_live()
        assert client.get_model_metadata("scale").name == "scale"


def test_a_quota_holds_over_both_gateways(world):
    ray, address = world
    quota = 200
    made = ask_control(ray, "create_key", name="few", quota=quota)
    url = f"{address}/v2/models/scale/infer"
    wait_for(
        "keys are asked for",
        lambda: httpx.post(url, json=x_body(ROWS), trust_env=False).status_code == 401,
    )
    good, end = 0, time.monotonic() + 120
    with httpx.Client(
        headers={"authorization": f"Bearer {made['key']}"}, trust_env=False, timeout=30
    ) as client:
        while time.monotonic() < end:
            answer = client.post(url, json=x_body(ROWS))
            good += answer.status_code == 200
            assert answer.status_code in (200, 429), answer.text
            if "of today (UTC)" in answer.text:
                break
            if answer.status_code == 429:
                time.sleep(0.1)
        else:
            raise AssertionError(f"{good} answers and no end")
    assert good == quota

    def told():
        [row] = ask_control(ray, "keys")
        return row["used"] == {"requests": quota}

    wait_for("control has counted", told)


def test_haproxy_ends_with_ray(world):
    """Last: stops this module's Ray."""
    ray, _ = world
    running = haproxies(ray)
    assert running
    ray.stop()
    wait_for("HAProxy is gone", lambda: not any(p.is_running() for p in running), 60)
