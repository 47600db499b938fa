"""A spare for a node under advice: pending until another node comes, then given back."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from several_nodes import run_alone

pytestmark = pytest.mark.slow
MEMORY = 128 * 2**20


def test_the_room_of_a_spare_is_elsewhere_and_free_again(tmp_path):
    run_alone(__file__, str(tmp_path), limit_s=240)


def main() -> None:
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": MEMORY, "labels": {"sundog.pool": "train"}}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY}
    )
    try:
        advised = cluster.add_node(num_cpus=1, **small)
        ray.init(address=cluster.address, log_to_driver=False)
        gcs = ray._raylet.GcsClient(address=cluster.address)

        def asked() -> list:
            return list(get_cluster_resource_state(gcs).pending_gang_resource_requests)

        # One CPU is free, but it is the advised node's: the autoscaler must see the need.
        spare = subprocess.Popen(
            [sys.executable, "-m", "sundog.capacity.spare", "--gcs", cluster.address,
             "--node", advised.node_id, "--wait", "120"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(asked)
        assert spare.poll() is None
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY, labels={"sundog.pool": "other"})
        time.sleep(2)
        assert spare.poll() is None, "a node of another pool is no spare"
        cluster.add_node(num_cpus=1, **small)
        said, _ = spare.communicate(timeout=90)
        assert (spare.returncode, json.loads(said)["event"]) == (0, "spare-there"), said
        until(lambda: ray.available_resources().get("CPU") == 3.0)
        assert not asked()
    finally:
        ray.shutdown()
        cluster.shutdown()


def until(what, limit_s=90.0):
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


if __name__ == "__main__":
    main()
