"""What a cluster has and costs right now: the cloud's own tags, and what its head says of them.

The tags work without reaching the head; use of the nodes and refusals need it, and are left out
with the reason where it cannot be reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sundog.capacity.cloud_of import make_cloud
from sundog.capacity.compiled import read_compiled
from sundog.capacity.decide import POOL_KEY
from sundog.capacity.tags import node_of, price_day_of, price_of
from sundog.clock import WALL, Clock
from sundog.clouds.base import Cloud

# Ray asks for a missing node every few seconds: a wait nobody repeated for this long is over.
WAIT_OVER_S = 600.0
SHOWN_DECISIONS = 5
WHY_WIDTH = 160


@dataclass(frozen=True)
class NodeLine:
    """`used` is the share of its CPUs or GPUs that work holds; `price_age_days` is since the price was the
    cloud's. None where nobody could say."""

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
    used: float | None = None
    ray: str = ""
    price_age_days: int | None = None


@dataclass(frozen=True)
class Waiting:
    """A pool that wants nodes and gets none: the named state, its reason, and the next try."""

    pool: str
    state: str
    why: str
    next_try_in_s: float | None


@dataclass(frozen=True)
class Cooling:
    """An offer, or a quota, that is not tried until `for_s` from now."""

    offer: str
    for_s: float
    reason: str


@dataclass(frozen=True)
class Decision:
    """What the provider did or would not do for a pool, `ago_s` seconds ago."""

    pool: str
    what: str
    why: str
    ago_s: float


@dataclass(frozen=True)
class Status:
    """`usd_hour` is of the priced nodes; `unpriced` says how many have no price."""

    cluster: str
    nodes: list[NodeLine]
    usd_hour: float
    unpriced: int
    budget_usd_hour: float | None
    waiting: list[Waiting] = field(default_factory=list)
    cooling: list[Cooling] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    head_error: str = ""


def cluster_status(
    compiled: str | Path, *, cloud: Cloud | None = None, clock: Clock = WALL,
    report: Mapping[str, Any] | None = None, head_error: str = "",
) -> Status:  # fmt: skip
    """The status of the cluster of a compiled file.

    `report` is the answer of `onhead.report`; without it `head_error` says why there is none.
    """
    config = read_compiled(compiled)
    ours, name = config["provider"]["sundog"], config["cluster_name"]
    machines = (cloud or make_cloud(config["provider"], name)).machines(name)
    now_s, said = clock.now_s(), report or {}
    used, ray = said.get("used") or {}, said.get("ray") or {}
    today = datetime.fromtimestamp(now_s, UTC).date()
    lines = []
    for m in machines:
        node = node_of(m)
        price = ours.get("head_usd_hour") if node.pool == "head" else price_of(m)
        day = price_day_of(m)
        lines.append(
            NodeLine(m.id, node.pool or "?", m.market, m.zone, m.shape, price,
                     max(0.0, now_s - m.launched_s), m.state,
                     node.draining or ray.get(m.id) == "DRAINING", m.tags.get("sundog:why", ""),
                     used.get(m.id), ray.get(m.id, ""), max(0, (today - day).days) if day else None)
        )  # fmt: skip
    lines.sort(key=lambda x: (x.pool != "head", x.pool, x.market, x.id))
    state = said.get("state") or {}
    return Status(
        name, lines, sum(x.usd_hour or 0.0 for x in lines), sum(x.usd_hour is None for x in lines),
        ours.get("budget_usd_hour"), _waiting(state, now_s), _cooling(state, now_s),
        [Decision(d["pool"], d["what"], d["why"], max(0.0, now_s - d["at_s"]))
         for d in state.get("decisions") or ()],
        head_error or str(said.get("error") or ""),
    )  # fmt: skip


def _waiting(state: Mapping[str, Any], now_s: float) -> list[Waiting]:
    out = []
    for pool, w in (state.get("waiting") or {}).items():
        if now_s - (w.get("asked_s") or now_s) > WAIT_OVER_S:
            continue
        at_s = w.get("next_try_s")
        out.append(
            Waiting(pool, w["state"], w["why"], None if at_s is None else max(0.0, at_s - now_s))
        )
    return out


def _cooling(state: Mapping[str, Any], now_s: float) -> list[Cooling]:
    rows = [
        Cooling(key, c["until_s"] - now_s, c["reason"])
        for key, c in (state.get("cooldowns") or {}).items()
        if c["until_s"] > now_s and not key.startswith(POOL_KEY)  # those are among the waits
    ]
    return sorted(rows, key=lambda c: c.for_s)


def render(status: Status) -> str:
    out = [
        f"{'node':20} {'pool':12} {'market':9} {'zone':10} {'shape':14} {'$/h':>7} {'of':>7} "
        f"{'age':>7} {'used':>5}  state"
    ]
    for n in status.nodes:
        price = "?" if n.usd_hour is None else f"{n.usd_hour:.3f}"
        used = "?" if n.used is None else f"{n.used:.0%}"
        if n.pool == "head":
            used = "-"
        told = "?" if n.price_age_days is None else f"{n.price_age_days} d"
        state = n.state + (", draining" if n.draining else "")
        out.append(
            f"{n.id:20} {n.pool:12} {n.market:9} {n.zone:10} {n.shape:14} {price:>7} "
            f"{told:>7} {n.age_s / 60:5.0f} m {used:>5}  {state}"
        )
    budget = (
        "" if status.budget_usd_hour is None else f" of a budget of ${status.budget_usd_hour:.2f}/h"
    )
    blind = f", {status.unpriced} nodes have no price" if status.unpriced else ""
    out.append(f"{len(status.nodes)} nodes · ${status.usd_hour:.2f}/h now{budget}{blind}")
    ages = [n.price_age_days for n in status.nodes if n.price_age_days is not None]
    if ages and max(ages) > 0:
        out.append(f"prices are up to {max(ages):,} days old: sundog cluster prices, compile, up")
    for w in status.waiting:
        when = "" if w.next_try_in_s is None else f", next try in {w.next_try_in_s:.0f} s"
        out.append(f"pool {w.pool} waits ({w.state}{when}): {w.why}")
    for c in status.cooling:
        out.append(f"cooling down {c.offer} for {c.for_s:.0f} s: {c.reason}")
    if status.decisions:
        out.append(f"last decisions (all {len(status.decisions)}: --json)")
    for d in status.decisions[-SHOWN_DECISIONS:]:
        why = d.why if len(d.why) <= WHY_WIDTH else d.why[:WHY_WIDTH] + "…"
        out.append(f"  {_ago(d.ago_s):>5} ago  {d.pool:12} {d.what}: {' '.join(why.split())}")
    if status.head_error:
        out.append(f"use of nodes and refusals are not known: {status.head_error}")
    return "\n".join(out)


def _ago(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def to_json(status: Status) -> dict[str, Any]:
    return asdict(status)
