"""The elastic provider under Ray's own autoscaler, loop and all, on the in-process cloud.

Ray decides when to ask; the GCS is played, so that hours of a cluster pass in seconds.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "capacity"))

from scripted_cloud import ScriptedCloud, refusing  # noqa: E402

from sundog.capacity.compile import compile_cluster  # noqa: E402
from sundog.capacity.provider import ElasticProvider  # noqa: E402
from sundog.clock import ManualClock  # noqa: E402
from sundog.ledger import FileLedger  # noqa: E402
from sundog.rayapi.drain import RayNode  # noqa: E402

ZONES = ("use1-az1", "use1-az2")


def node_id(instance: str) -> bytes:
    return hashlib.sha224(instance.encode()).digest()


class World:
    """A cloud, a clock, and what the GCS would say of the nodes on it."""

    address = "127.0.0.1:1"

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(1_000_000.0)
        self.cloud = ScriptedCloud(now_s=self.clock.now_s, zone_names=ZONES)
        self.ledger = FileLedger(folder / "ledger")
        self.wanted = 0
        self.status: dict[str, str] = {}
        self.busy: set[str] = set()
        self.version = 0

    # As the node provider sees Ray.

    def nodes(self) -> list[RayNode]:
        return [
            RayNode(node_id(i).hex(), i, m.machine.tags["ray-user-node-type"], self._status(i))
            for i, m in self.cloud.running.items()
        ]

    def _status(self, instance: str) -> str:
        return self.status.get(instance, "RUNNING" if instance in self.busy else "IDLE")

    def drain(self, node: str, deadline_s: float | None, why: str) -> bool:
        [instance] = [i for i in self.cloud.running if node_id(i).hex() == node]
        self.status[instance] = "DRAINING"
        return True

    # As the autoscaler sees the GCS.

    def drain_node(self, node: Any, reason: int, why: str, deadline_ms: int) -> tuple[bool, str]:
        return True, ""

    def get_cluster_resource_state(self) -> bytes:
        from ray.core.generated import autoscaler_pb2 as pb

        self.version += 1
        state = pb.ClusterResourceState(
            cluster_resource_state_version=self.version, cluster_session_name="test"
        )
        for instance, running in self.cloud.running.items():
            kind = running.machine.tags["ray-user-node-type"]
            status = self._status(instance)
            node = state.node_states.add(
                node_id=node_id(instance), instance_id=instance, ray_node_type_name=kind,
                status=pb.NodeStatus.Value(status), node_state_version=self.version,
            )  # fmt: skip
            names = ("memory", "node:__internal_head__") if kind == "head" else ("GPU", "CPU")
            for name in names:
                node.total_resources[name] = 1.0
                node.available_resources[name] = 0.0 if instance in self.busy else 1.0
        if self.wanted:
            demand = state.pending_resource_requests.add(count=self.wanted)
            demand.request.resources_bundle["GPU"] = 1.0
        return bytes(
            pb.GetClusterResourceStateReply(cluster_resource_state=state).SerializeToString()
        )


WORLD: list[World] = []


class Looped(ElasticProvider):
    """As Ray makes it from the cluster file: by name, with two arguments."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        world = WORLD[-1]
        super().__init__(
            provider_config, cluster_name, cloud=world.cloud, clock=world.clock,
            ledger=world.ledger, drains=lambda: world,
        )  # fmt: skip


class Loop:
    def __init__(self, world: World, folder: Path) -> None:
        from ray.autoscaler._private.providers import _get_node_provider
        from ray.autoscaler._private.util import prepare_config
        from ray.autoscaler.v2.autoscaler import Autoscaler
        from ray.autoscaler.v2.instance_manager.config import FileConfigReader

        self.world = world
        spec = yaml.safe_load((ROOT / "cluster-configs/specs/aws-train.yaml").read_text())
        # Ray keeps one provider a cluster for the life of the process.
        name = spec["cluster"] = f"loop-{len(WORLD)}"
        spec["pools"] = {"a10g": spec["pools"]["a10g"]}
        spec["cloud"]["aws"]["zones"] = list(ZONES)
        source = folder / "spec.yaml"
        source.write_text(yaml.safe_dump(spec))
        config = compile_cluster(source).documents[0]
        config["provider"]["module"] = f"{__name__}.Looped"
        config["provider"]["disable_node_updaters"] = True
        config["file_mounts"] = {}
        config = prepare_config(config)
        compiled = folder / "train.yaml"
        compiled.write_text(yaml.safe_dump(config))
        provider = _get_node_provider(config["provider"], name)
        head = {"ray-node-type": "head", "ray-user-node-type": "head", "ray-launch-config": "x"}
        provider.create_node(config["available_node_types"]["head"]["node_config"], head, 1)
        self.scaler = Autoscaler("test", FileConfigReader(str(compiled)), world)

    def until(self, what: Callable[[Any], Any], limit_s: float = 30.0) -> Any:
        deadline = time.monotonic() + limit_s
        while True:
            state = self.scaler.update_autoscaling_state()
            found = what(state)
            if found:
                return found
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.05)

    def workers(self, market: str | None = None) -> list[str]:
        return [
            i for i, m in self.world.cloud.running.items()
            if m.machine.tags["ray-user-node-type"] != "head" and market in (None, m.machine.market)
        ]  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    WORLD.append(World(tmp_path))
    return WORLD[-1]


def test_rays_own_failure_reason_says_why_and_when_the_next_try_is(
    world: World, tmp_path: Path
) -> None:
    loop = Loop(world, tmp_path)
    world.cloud.refuse = lambda order: refusing(order.market)(order)
    world.wanted = 1
    failed = loop.until(lambda state: list(state.failed_instance_requests if state else ()))
    reason = failed[0].reason
    assert "pool a10g: no rung can be had; next try in 30 s" in reason
    assert "spot use1-az" in reason
    # What `ray status -v` makes of it.
    from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, ResourceDemandSummary
    from ray.autoscaler.v2.utils import ClusterStatusFormatter

    launch = LaunchRequest(
        instance_type_name="", ray_node_type_name=failed[0].ray_node_type_name, count=1,
        state=LaunchRequest.Status.FAILED, request_ts_s=0, details=reason,
    )  # fmt: skip
    status = ClusterStatus(failed_launches=[launch], resource_demands=ResourceDemandSummary())
    assert "next try in 30 s" in ClusterStatusFormatter._failed_node_report(status, verbose=True)


def test_the_budgets_refusal_is_in_rays_failure_reason(world: World, tmp_path: Path) -> None:
    loop = Loop(world, tmp_path)
    config_file = tmp_path / "train.yaml"
    config = yaml.safe_load(config_file.read_text())
    config["provider"]["sundog"]["budget_usd_hour"] = 0.2
    config_file.write_text(yaml.safe_dump(config))
    from ray.autoscaler.v2.autoscaler import Autoscaler
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    loop.scaler = Autoscaler("test", FileConfigReader(str(config_file)), world)
    world.wanted = 1
    failed = loop.until(lambda state: list(state.failed_instance_requests if state else ()))
    assert "passes the budget of $0.20/h" in failed[0].reason
    assert loop.workers() == []


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_spot_recovers_so_the_stand_in_goes_drained_and_the_next_node_is_spot(
    world: World, tmp_path: Path, busy: bool
) -> None:
    loop = Loop(world, tmp_path)
    world.cloud.refuse = refusing("spot")
    world.wanted = 1
    [stand_in] = loop.until(lambda state: loop.workers("on-demand"))
    # The demand is placed on it; spot comes back; an hour passes.
    world.wanted = 0
    if busy:
        world.busy.add(stand_in)
    world.cloud.refuse = lambda order: None
    loop.until(lambda state: True)
    assert world.status == {}, "nothing is moved while spot has just been refused"
    world.clock.advance(3600)
    loop.until(lambda state: world.status.get(stand_in) == "DRAINING")
    # However often Ray looks, a busy stand-in lives until its work has moved.
    for _ in range(10):
        loop.until(lambda state: True)
    assert stand_in in world.cloud.running
    # Its work asks for a place elsewhere: this time spot.
    world.wanted = 1
    [spot] = loop.until(lambda state: loop.workers("spot"))
    world.wanted = 0
    world.busy = {spot}
    assert stand_in in world.cloud.running
    # The work has moved: Ray's raylet leaves, and the autoscaler gives the machine back.
    world.status[stand_in] = "DEAD"
    loop.until(lambda state: stand_in not in world.cloud.running)
    assert loop.workers() == [spot]
    ends = [e for e in world.ledger.since(0.0) if e.kind == "terminate"]
    assert [e.node for e in ends] == [stand_in]
    assert [e for e in world.ledger.since(0.0) if e.kind == "interruption"] == []
