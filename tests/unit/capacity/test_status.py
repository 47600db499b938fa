"""Status from tags alone, with a head restart in between, and no dollars without a price."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler.node_launch_exception import NodeLaunchException
from scripted_cloud import ScriptedCloud, refusing

from sundog.capacity.compile import compile_cluster
from sundog.capacity.onhead import report
from sundog.capacity.provider import ElasticProvider
from sundog.capacity.status import cluster_status, render
from sundog.clock import ManualClock
from sundog.errors import ClusterError
from sundog.ledger import FileLedger
from sundog.rayapi.drain import RayNode

SPECS = Path(__file__).parents[3] / "cluster-configs" / "specs"


def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **cloud_is: Any) -> tuple[Any, ...]:
    """The committed training cluster on a scripted cloud: file, config, clock, cloud, provider."""
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))
    compiled = compile_cluster(SPECS / "aws-train.yaml")
    path = tmp_path / "train.yaml"
    path.write_text(compiled.text)
    config, clock = compiled.documents[0], ManualClock(10_000.0)
    cloud = ScriptedCloud(now_s=clock.now_s, **cloud_is)
    elastic = ElasticProvider(
        config["provider"], "train", cloud=cloud, clock=clock, ledger=FileLedger(tmp_path / "l")
    )
    return path, config, clock, cloud, elastic


def test_nodes_by_pool_market_price_and_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config, clock, cloud, elastic = train(tmp_path, monkeypatch, zone_names=("use1-az1",))
    for kind in ("head", "a10g"):
        tags = {"ray-node-type": "x", "ray-user-node-type": kind}
        elastic.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    clock.advance(600)
    status = cluster_status(path, cloud=cloud, clock=clock)
    assert [(n.pool, n.market, n.age_s) for n in status.nodes] == [
        ("head", "on-demand", 600.0), ("a10g", "spot", 600.0)
    ]  # fmt: skip
    assert status.usd_hour == pytest.approx(0.1728 + 0.3018)
    assert "of a budget of $130.00/h" in render(status)
    # Bought at the price of 2023-03-31; on the next day the market moves.
    later = ManualClock(datetime(2023, 4, 3, tzinfo=UTC).timestamp())
    assert [n.price_age_days for n in cluster_status(path, cloud=cloud, clock=later).nodes] == [
        None,
        3,
    ]
    assert "prices are up to 3 days old" in render(cluster_status(path, cloud=cloud, clock=later))
    clock.advance(datetime(2023, 4, 2, tzinfo=UTC).timestamp() - clock.now_s())
    [spot] = [m for m in cloud.machines("train") if m.market == "spot"]
    elastic._buyer.reprice(spot, 0.4)
    assert [n.price_age_days for n in cluster_status(path, cloud=cloud, clock=later).nodes] == [
        None,
        1,
    ]


def test_a_file_of_rays_own_provider_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "gcp.yaml"
    path.write_text(compile_cluster(SPECS / "gcp.yaml", plain=True).text)
    with pytest.raises(ClusterError, match="ray status"):
        cluster_status(path)


def test_use_refusals_and_the_next_try_come_from_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config, clock, cloud, elastic = train(tmp_path, monkeypatch)
    tags = {"ray-node-type": "worker", "ray-user-node-type": "a10g"}
    node_config = config["available_node_types"]["a10g"]["node_config"]
    [node] = elastic.create_node(node_config, tags, 1)
    cloud.refuse = lambda order: refusing(order.market)(order)
    with pytest.raises(NodeLaunchException):
        elastic.create_node(node_config, tags, 1)
    clock.advance(10)

    class Ray:
        def nodes(self) -> list[RayNode]:
            return [RayNode("f" * 56, node, "a10g", "DRAINING", 0.5)]

        def drain(self, node_id: str, deadline_s: float | None, why: str) -> bool:
            return True

    said = cluster_status(path, cloud=cloud, clock=clock, report=report("train", Ray()))
    [line] = said.nodes
    assert (line.used, line.draining, line.ray) == (0.5, True, "DRAINING")
    [wait] = said.waiting
    assert (wait.pool, wait.state, wait.next_try_in_s) == ("a10g", "refused", 20.0)
    text = render(said)
    assert "50%" in text
    assert "pool a10g waits (refused, next try in 20 s): pool a10g: no rung can be had" in text
    assert "cooling down spot/" in text
    assert "last decisions" in text
    assert "10 s ago  a10g         refused: pool a10g: no rung can be had" in text
    assert [d.what for d in said.decisions[:2]] == ["launched", "refused"]
    assert "not known" not in text
    clock.advance(700)  # nobody has asked for a node since: nobody waits
    later = cluster_status(path, cloud=cloud, clock=clock, report=report("train", Ray()))
    assert later.waiting == []
    blind = cluster_status(path, cloud=cloud, clock=clock, head_error="no SSH")
    assert "are not known: no SSH" in render(blind)
    assert blind.nodes[0].used is None
