"""Stand-ins: drained through Ray when spot is back, tagged, once, and never killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.autoscaler.node_launch_exception import NodeLaunchException
from scripted_cloud import ScriptedCloud, refusing

from sundog.capacity.provider import ElasticProvider
from sundog.capacity.state import PoolPlan, plans_to_dict
from sundog.clock import ManualClock
from sundog.errors import ClusterError
from sundog.ledger import FileLedger
from sundog.market.offers import Offer
from sundog.rayapi.drain import RayNode

SPOT = Offer("aws", "spot", "r1", "z1", "g5.xlarge", "G and VT", 0.3, 1.0, 0.3)
FULL = Offer("aws", "on-demand", "r1", "z1", "g5.xlarge", "G and VT", 1.0, 1.0, 1.0)
TAGS = {"ray-node-type": "worker", "ray-user-node-type": "gpu"}


class Ray:
    def __init__(self) -> None:
        self.known: list[RayNode] = []
        self.drains: list[tuple[str, str]] = []
        self.down = False

    def nodes(self) -> list[RayNode]:
        if self.down:
            raise ClusterError("away")
        return self.known

    def drain(self, node_id: str, deadline_s: float | None, why: str) -> bool:
        self.drains.append((node_id, why))
        return True


@pytest.fixture
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ElasticProvider, ScriptedCloud, Ray, ManualClock, str]:
    """A cluster whose one node is an on-demand stand-in, an hour after spot was refused."""
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))
    clock, ray = ManualClock(1000.0), Ray()
    cloud = ScriptedCloud(refuse=refusing("spot"), now_s=clock.now_s)
    plans = plans_to_dict({"gpu": PoolPlan("gpu", (SPOT, FULL))})
    provider = ElasticProvider(
        {"region": "r1", "sundog": plans}, "c", cloud=cloud, clock=clock, drains=lambda: ray,
        ledger=FileLedger(tmp_path / "ledger"),
    )  # fmt: skip
    [node] = provider.create_node({"InstanceType": "x"}, TAGS, 1)
    ray.known = [RayNode("f" * 56, node, "gpu", "RUNNING")]
    cloud.refuse = lambda order: None
    return provider, cloud, ray, clock, node


def test_a_stand_in_is_drained_once_spot_is_quiet_and_not_before(world: tuple) -> None:
    provider, cloud, ray, clock, node = world
    provider.non_terminated_nodes({})
    assert ray.drains == []
    clock.advance(3600)
    for _ in range(3):
        provider.non_terminated_nodes({})
        clock.advance(60)
    assert [d[0] for d in ray.drains] == ["f" * 56]
    assert "checkpoint" in ray.drains[0][1]
    assert list(cloud.running) == [node], "draining ends nothing by itself"
    assert cloud.running[node].machine.tags["sundog:draining"] == "stand-in"
    assert any(d["what"] == "handed back" for d in provider.state()["decisions"])


def test_a_cluster_that_is_away_changes_nothing_and_is_asked_again(world: tuple) -> None:
    provider, _cloud, ray, clock, node = world
    clock.advance(3600)
    ray.down = True
    assert provider.non_terminated_nodes({}) == [node]
    ray.down = False
    clock.advance(31)
    provider.non_terminated_nodes({})
    assert len(ray.drains) == 1


def test_a_node_that_ray_does_not_know_yet_is_left_alone(world: tuple) -> None:
    provider, _, ray, clock, _ = world
    ray.known = []
    clock.advance(3600)
    provider.non_terminated_nodes({})
    assert ray.drains == []


def test_an_idle_gang_is_drained_from_a_dry_zone_and_bought_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))
    clock, ray = ManualClock(1000.0), Ray()
    cloud = ScriptedCloud(now_s=clock.now_s, grants=lambda order: 1)
    other = Offer("aws", "spot", "r1", "z2", "g5.xlarge", "G and VT", 0.4, 1.0, 0.4)
    plans = plans_to_dict({"gpu": PoolPlan("gpu", (SPOT, other), one_zone=True)})
    provider = ElasticProvider(
        {"region": "r1", "sundog": plans}, "c", cloud=cloud, clock=clock, drains=lambda: ray,
        ledger=FileLedger(tmp_path / "ledger"),
    )  # fmt: skip
    # One of four is granted, then the zone is dry.
    cloud.refuse = lambda o: refusing("spot")(o) if cloud.running and o.zone == "z1" else None

    with pytest.raises(NodeLaunchException, match="1 of 4"):
        provider.create_node({"InstanceType": "x"}, TAGS, 4)
    [first] = cloud.running
    ray.known = [RayNode("f" * 56, first, "gpu", "IDLE", idle_s=90.0)]
    with pytest.raises(NodeLaunchException, match="no rung can be had"):
        provider.create_node({"InstanceType": "x"}, TAGS, 3)
    provider.non_terminated_nodes({})
    assert [d[0] for d in ray.drains] == ["f" * 56]
    assert cloud.running[first].machine.tags["sundog:draining"] == "gang"
    assert any(d["what"] == "gang moved" for d in provider.state()["decisions"])
    gathered = provider.create_node({"InstanceType": "x"}, TAGS, 4)
    assert {m.zone for m in gathered.values()} == {"z2"}
