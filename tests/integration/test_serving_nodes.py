"""Gateways and replicas on different nodes of a real Ray: reached directly, over TLS, and through losses.

Each node has an address of its own on loopback, 127.0.0.2 (the head) to 127.0.0.6. Not 127.0.0.1, for
which Ray takes the machine's address.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from several_nodes import run_alone

from sundog.rayapi.local import free_ports

pytestmark = pytest.mark.timeout(600)
MEMORY = 128 * 2**20
REPLICAS = 'sundog_gateway_replicas{gateway="'


@pytest.mark.slow
def test_gateways_reach_replicas_of_all_nodes_whatever_happens_to_these(tmp_path):
    said = run_alone(__file__, "1", str(tmp_path), limit_s=400)
    assert "no request failed" in said


@pytest.mark.long
def test_each_node_has_its_edge_before_its_gateways(tmp_path):
    said = run_alone(__file__, "2", str(tmp_path), limit_s=500)
    assert "no request failed" in said


def main(gateways: int, folder: Path) -> None:
    [port] = free_ports(1)
    os.environ |= {
        "SUNDOG_GATEWAY": f"http://node:{port}", "SUNDOG_GATEWAY_NODES": "role=web",
        "SUNDOG_GATEWAYS": str(gateways), "SUNDOG_GATEWAY_GRPC": "",
        "SUNDOG_ROOT": (folder / "root").as_uri(),
        # Once with Serve's handle for whom nothing else reaches, once without.
        "SUNDOG_DATA_PATH": "socket" if gateways == 1 else "direct",
    }  # fmt: skip
    import ray
    from ray.cluster_utils import Cluster
    from serving_kit import register_scale, wait_for

    from sundog.control.client import ControlClient

    def at(number: int) -> str:
        return f"http://127.0.0.{number}:{port}"

    def add(number: int, cpus: int = 1):
        return cluster.add_node(
            num_cpus=cpus, object_store_memory=MEMORY, node_ip_address=f"127.0.0.{number}",
            labels={"role": "web"},
        )  # fmt: skip

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1, "object_store_memory": MEMORY, "node_ip_address": "127.0.0.2",
        },
    )  # fmt: skip
    try:
        nodes = {3: add(3, cpus=0), 4: add(4)}  # so a replica is on the head, one on 4
        ray.init(address=cluster.address, log_to_driver=False)
        register_scale(os.environ["SUNDOG_ROOT"], "scale", 2.0, folder)
        # Where no node is a spot node, those that would rather be on one are anywhere.
        resources = {"cpus": 1, "market": "spot-first"}
        ControlClient().deploy(
            {"service": "s", "model": "scale@champion", "replicas": 2, "resources": resources}
        )
        for number in nodes:
            wait_for(f"a gateway at {at(number)}", lambda n=number: answers(at(n)))
        all_of_them = 2 * gateways
        wait_for("direct links", lambda: seen_by(at(3)) == [2.0] * all_of_them)
        print(httpx.get(f"{at(4)}/metrics", trust_env=False).text.count(REPLICAS))
        assert not answers(at(2)), "the head has none"
        go_on(cluster.address, nodes, at, add, all_of_them)
    finally:
        ray.shutdown()
        cluster.shutdown()


def go_on(address, nodes, at, add, all_of_them) -> None:
    """A replica, a node under notice and a node without one: nobody who asks at 3 notices."""
    from serving_kit import load, wait_for

    from sundog.rayapi import serve_apps
    from sundog.rayapi.drain import Gcs

    def places() -> set[str]:
        apps = serve_apps.applications()
        return {n for app in ("s--v1", "sundog-gateway") for view in apps[app].deployments.values()
                for n in view.nodes.values()}  # fmt: skip

    with load(at(3), "s", {"1": 2.0}) as seen:

        def goes_on() -> None:
            count = seen.total
            wait_for("answers go on", lambda: seen.total > count + 100)

        goes_on()
        os.kill(replicas()[0], signal.SIGKILL)
        goes_on()
        wait_for("both are back", lambda: seen_by(at(3)) == [2.0] * all_of_them)
        fifth = add(5)
        Gcs(address).drain(nodes[4].node_id, time.time() + 90, "spot notice")
        wait_for("nothing is left on 4", lambda: nodes[4].node_id not in places())
        nodes[4].kill_all_processes(check_alive=False, allow_graceful=False)
        goes_on()
        wait_for("5 has taken its place", lambda: seen_by(at(5)) == [2.0] * all_of_them)
        if all_of_them > 2:
            no_notice(fifth, goes_on, at, add, all_of_them)
    assert seen.failures == [], seen.failures[:3]
    print("no request failed of", seen.total)


def no_notice(node, goes_on, at, add, all_of_them) -> None:
    """A whole node is gone at once, with its gateways and a replica."""
    from serving_kit import wait_for

    node.kill_all_processes(check_alive=False, allow_graceful=False)
    goes_on()
    add(6)
    wait_for("6 sees all", lambda: seen_by(at(6)) == [2.0] * all_of_them)


def answers(gateway: str) -> bool:
    from serving_kit import WIDTH, x_body

    try:
        answer = httpx.post(
            f"{gateway}/v2/models/s/infer", json=x_body([[1.0] * WIDTH]), timeout=5, trust_env=False
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def seen_by(gateway: str) -> list[float]:
    """How many connections to replicas each gateway has, as one of them knows of all."""
    lines = httpx.get(f"{gateway}/metrics", timeout=10, trust_env=False).text.splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(REPLICAS)]


def replicas() -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "ServeReplica:s--v1:Model" in line and process.is_running():
            found.append(process.pid)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
