"""What a cluster has and costs right now, from the cloud's own tags; works without reaching the head."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from sundog.capacity.launching import node_of, price_of
from sundog.capacity.provider import make_cloud
from sundog.clock import WALL, Clock
from sundog.clouds.base import Cloud
from sundog.errors import ClusterError


@dataclass(frozen=True)
class NodeLine:
    id: str
    pool: str
    market: str
    zone: str
    shape: str
    usd_hour: float | None
    age_s: float
    state: str
    draining: bool
    why: str


@dataclass(frozen=True)
class Status:
    """`usd_hour` is of the priced nodes; `unpriced` says how many have no price."""

    cluster: str
    nodes: list[NodeLine]
    usd_hour: float
    unpriced: int
    budget_usd_hour: float | None


def cluster_status(
    compiled: str | Path, *, cloud: Cloud | None = None, clock: Clock = WALL
) -> Status:
    """The status of the cluster of a compiled file. ClusterError where there is no ladder in it."""
    config: dict[str, Any] = yaml.safe_load(Path(compiled).read_text())
    ours = config["provider"].get("sundog")
    if ours is None:
        raise ClusterError(
            f"{compiled} has no elastic provider", "ask Ray: ray status, or the cloud's console"
        )
    name = config["cluster_name"]
    machines = (cloud or make_cloud(config["provider"])).machines(name)
    now_s = clock.now_s()
    lines = []
    for m in machines:
        node = node_of(m)
        price = ours.get("head_usd_hour") if node.pool == "head" else price_of(m)
        lines.append(
            NodeLine(m.id, node.pool or "?", m.market, m.zone, m.shape, price,
                     max(0.0, now_s - m.launched_s), m.state, node.draining,
                     m.tags.get("sundog:why", ""))
        )  # fmt: skip
    lines.sort(key=lambda x: (x.pool != "head", x.pool, x.market, x.id))
    return Status(
        name, lines, sum(x.usd_hour or 0.0 for x in lines), sum(x.usd_hour is None for x in lines),
        ours.get("budget_usd_hour"),
    )  # fmt: skip


def render(status: Status) -> str:
    out = [f"{'pool':12} {'market':9} {'zone':10} {'shape':14} {'$/h':>7} {'age':>7}  state"]
    for n in status.nodes:
        price = "?" if n.usd_hour is None else f"{n.usd_hour:.3f}"
        state = n.state + (", draining" if n.draining else "")
        out.append(
            f"{n.pool:12} {n.market:9} {n.zone:10} {n.shape:14} {price:>7} {n.age_s / 60:5.0f} m  "
            f"{state}"
        )
    budget = (
        "" if status.budget_usd_hour is None else f" of a budget of ${status.budget_usd_hour:.2f}/h"
    )
    blind = f", {status.unpriced} nodes have no price" if status.unpriced else ""
    out.append(f"{len(status.nodes)} nodes · ${status.usd_hour:.2f}/h now{budget}{blind}")
    return "\n".join(out)


def to_json(status: Status) -> dict[str, Any]:
    return asdict(status)
