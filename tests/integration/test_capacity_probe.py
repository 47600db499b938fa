"""The all-reduce probe on a real, small Ray of three nodes; its arithmetic and its refusals.

The cluster lives in a child process: Ray reads its token mode once, when it is first imported.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from several_nodes import run_alone

from sundog.capacity.probe import members
from sundog.errors import ClusterError
from sundog.rayapi.links import bus_gbyte_s


def node(pool: str, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Labels": {"sundog.pool": pool}, "NodeID": pool}


def test_only_live_nodes_of_the_pool_are_probed_and_one_is_not_enough() -> None:
    nodes = [node("a"), node("a"), node("a", alive=False), node("b"), node("head")]
    assert len(members(nodes, "a", None)) == 2
    with pytest.raises(ClusterError, match="'b' has 1 live nodes") as caught:
        members(nodes, "b", None)
    assert caught.value.fix == "pools with nodes now: a, b"


def test_bandwidth_is_counted_as_nccl_tests_do() -> None:
    assert bus_gbyte_s(2, 10**9, 1.0) == pytest.approx(1.0)
    assert bus_gbyte_s(4, 10**9, 0.5) == pytest.approx(3.0)


@pytest.mark.slow
def test_two_real_nodes_are_measured_over_their_network() -> None:
    said = run_alone(__file__, limit_s=200)
    line = next(x for x in said.splitlines() if x.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert (found["pool"], found["nodes"], found["backend"]) == ("gang", 2, "gloo")
    assert found["zones"] == ["z1", "z2"]
    assert found["bus_gbyte_s"] > 0
    assert found["latency_ms"] > 0
    assert "REFUSED pool 'lonely' has 0 live nodes" in said


class Held:
    def there(self) -> bool:
        return True


def main() -> None:
    import ray
    import torch
    from ray.cluster_utils import Cluster

    from sundog.capacity.probe import probe

    memory = 128 * 2**20
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory}
    )
    # GPUs in name only, and held: where torch sees none, none is asked for.
    gpus = 0 if torch.cuda.is_available() else 1
    for zone in ("z1", "z2"):
        cluster.add_node(
            num_cpus=1, num_gpus=gpus, object_store_memory=memory,
            labels={"sundog.pool": "gang", "ray.io/availability-zone": zone},
        )  # fmt: skip
    ray.init(address=cluster.address, log_to_driver=False)
    holder = ray.remote(num_cpus=0, num_gpus=1)(Held)
    held = [holder.remote() for _ in range(2 * gpus)]
    ray.get([h.there.remote() for h in held])
    try:
        found = probe("gang", address=cluster.address, size_bytes=2**20)
        print("FOUND " + json.dumps(found.to_json()), flush=True)
        try:
            probe("lonely")
        except ClusterError as error:
            print("REFUSED " + error.message, flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
