"""What a cluster spec would cost, before money is spent: the ladder of each pool as data and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sundog.capacity import reach
from sundog.capacity.check import Bought, check, read_spec
from sundog.capacity.state import PoolPlan
from sundog.clock import WALL, Clock
from sundog.clouds.gcp_quotas import ALL_GPUS
from sundog.market.offers import (
    PRIOR_INTERRUPTIONS,
    PRIOR_NODE_HOURS,
    Offer,
    Record,
    side_costs_usd_hour,
)
from sundog.market.prices import PriceBook
from sundog.spec.quantity import GIB

DAY_S = 86400.0
TOLD_RUNGS = 3
STALE_DAYS = 30


@dataclass(frozen=True)
class Rung:
    number: int
    market: str
    zone: str
    shape: str
    usd_hour: float | None
    at_most_usd_hour: float | None
    expected_usd_hour: float | None
    age_days: int | None


@dataclass(frozen=True)
class PoolTable:
    name: str
    nodes: str
    rungs: list[Rung]
    fallback: bool


@dataclass(frozen=True)
class Quota:
    """What an account must be allowed, in vCPUs or in GPUs. A new account's GPU quotas are zero."""

    family: str
    market: str
    needed: int
    unit: str = "vCPUs"
    allowed: int | None = None

    @property
    def ask_for(self) -> int:
        return max(0, self.needed - (self.allowed or 0))


@dataclass(frozen=True)
class Plan:
    """Dollars are None where any part of them has no price."""

    cluster: str
    region: str
    pools: list[PoolTable]
    usd_hour_min: float | None
    usd_hour_max: float | None
    usd_hour_max_on_demand: float | None
    budget_usd_hour: float | None
    refused: list[str]
    quotas: list[Quota]
    quotas_unknown: str = ""
    rework: str = ""
    warnings: list[str] = field(default_factory=list)
    side_usd_hour_max: float | None = None
    """Disks and transfer between zones, estimated, at max. No budget and no ledger counts them."""


def plan_cluster(
    path: str | Path, *, book: PriceBook | None = None, clock: Clock = WALL,
    allowed: dict[tuple[str, str], int] | None = None, why_not: str = "not asked",
    records: Mapping[str, Record] | None = None, plain: bool = False,
) -> Plan:  # fmt: skip
    """The plan of the spec at `path`.

    `allowed` is (quota family, market) -> what the account has, from `account.allowed`; None, with
    `why_not`, when nobody could say. `records` is what became of spot nodes before, by zone/shape, from
    `capacity.records`.
    """
    bought = check(read_spec(path), book, records=records)
    spec, warned = bought.spec, reach.warnings(bought, plain)
    bought_here = spec.cloud.name in ("aws", "gcp", "azure")
    pools = [
        PoolTable(
            n, str(spec.pools[n].nodes), [_rung(i, o, clock) for i, o in enumerate(p.offers, 1)],
            fallback=bought_here and not plain,
        )
        for n, p in bought.pools.items()
    ]  # fmt: skip
    low, high, full = _totals(bought)
    refused = _refused(bought, high, held=bought_here and not plain)
    return Plan(
        spec.cluster, spec.cloud.region, pools, low, high, full, spec.budget, refused,
        _quotas(bought, allowed), "" if allowed is not None else why_not,
        _evidence(bought, records or {}), warned, _sides(bought),
    )  # fmt: skip


def _evidence(bought: Bought, records: Mapping[str, Record]) -> str:
    """What the expected re-work rests on."""
    spot = {
        f"{o.zone}/{o.shape}" for p in bought.pools.values() for o in p.offers if o.market == "spot"
    }
    if not spot:
        return ""
    seen = [r for k, r in records.items() if k in spot]
    hours = sum(r.node_hours for r in seen)
    prior = f"a prior of {PRIOR_INTERRUPTIONS:g} interruption in {PRIOR_NODE_HOURS:g} node-hours"
    if not hours:
        return f"re-work from {prior}: no spot node of these offers has run yet"
    return (
        f"re-work from {prior} a place, and {sum(r.interruptions for r in seen)} interruptions seen "
        f"in {hours:.1f} node-hours of {len(seen)} of the {len(spot)} spot offers"
    )


def _rung(number: int, offer: Offer, clock: Clock) -> Rung:
    # The day is that of the price, or of the on-demand price that bounds it.
    today = datetime.fromtimestamp(clock.now_s(), UTC).date()
    return Rung(
        number, offer.market, offer.zone or "any", offer.shape, offer.usd_hour,
        offer.bound_usd_hour, offer.expected_usd_hour,
        (today - offer.priced_on).days if offer.priced_on else None,
    )  # fmt: skip


def _first(plan: PoolPlan, market: str | None = None) -> float | None:
    costs = [o.ceiling_usd_hour for o in plan.offers if market in (None, o.market)]
    return next((c for c in costs if c is not None), None)


def _totals(bought: Bought) -> tuple[float | None, float | None, float | None]:
    """Dollars an hour at every pool's lower end, at its upper end, and that all on-demand."""
    if bought.market_cloud == "onprem":
        return None, None, None
    head = bought.head_usd_hour
    low = high = full = head
    for name, pool in bought.spec.pools.items():
        plan = bought.pools[name]
        cheap, dear = _first(plan), _first(plan, "on-demand")
        floor = min(pool.on_demand_floor, pool.nodes.low)
        least = _add(_times(floor, dear), _times(pool.nodes.low - floor, cheap))
        low = _add(low, least)
        most = pool.nodes.high or 0
        upper = _add(_times(pool.on_demand_floor, dear), _times(most - pool.on_demand_floor, cheap))
        high = _add(high, upper)
        full = _add(full, _times(most, dear))
    return low, high, full


def _sides(bought: Bought) -> float | None:
    """Disks and transfer between zones with every pool at its upper end, the head's disk included."""
    if bought.spec.cloud.name not in ("aws", "gcp", "azure"):
        return None
    disk = bought.spec.head.disk
    total = side_costs_usd_hour(bought.market_cloud, disk.size / GIB, False, disk.kind)
    for name, pool in bought.spec.pools.items():
        # The same for each rung: it depends on the pool's disk and zones.
        total += bought.pools[name].offers[0].side_usd_hour * (pool.nodes.high or 0)
    return total


def _times(count: int, price: float | None) -> float | None:
    return 0.0 if count == 0 else None if price is None else count * price


def _add(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _refused(bought: Bought, high: float | None, held: bool) -> list[str]:
    """`held`: our provider is there to refuse what passes the budget."""
    spec, out = bought.spec, []
    if spec.budget is not None and high is not None and high > spec.budget:
        then = "launches stop there, whichever pool asks last" if held else "nothing stops it here"
        out.append(f"at max ${high:.2f}/h, over the budget of ${spec.budget:.2f}/h: {then}")
    for name, plan in bought.pools.items():
        blind = sum(o.ceiling_usd_hour is None for o in plan.offers)
        if blind and spec.budget is not None and held:
            out.append(f"pool {name}: {blind} offers without any price are refused under a budget")
    if spec.cloud.name == "kuberay":
        out.append("a worker group that finds no node waits for ever: nothing falls back here")
    return out


def _quotas(bought: Bought, allowed: dict[tuple[str, str], int] | None) -> list[Quota]:
    """What all pools at their upper ends need, by quota and market."""
    wanted: dict[tuple[str, str, str], int] = {}
    gpus = 0
    for name, pool in bought.spec.pools.items():
        largest: dict[tuple[str, str, str], int] = {}
        shapes = {shape.name: shape for shape in bought.shapes[name]}
        for offer in bought.pools[name].offers:
            shape = shapes[offer.shape]
            of = (offer.quota, str(offer.market), shape.quota_unit)
            largest[of] = max(largest.get(of, 0), shape.quota_units)
        for of, most in largest.items():
            wanted[of] = wanted.get(of, 0) + most * (pool.nodes.high or 0)
        most_gpus = max((shape.accelerators for shape in shapes.values()), default=0)
        gpus += most_gpus * (pool.nodes.high or 0)
    if bought.head is not None:
        of = (bought.head.quota("on-demand"), "on-demand", bought.head.quota_unit)
        wanted[of] = wanted.get(of, 0) + bought.head.quota_units
    if bought.spec.cloud.name == "gcp" and gpus:
        wanted[(*ALL_GPUS, "GPUs")] = gpus
    return [
        Quota(f, m, n, unit, None if allowed is None else allowed.get((f, m)))
        for (f, m, unit), n in sorted(wanted.items())
    ]


def render(plan: Plan, all_rungs: bool = False) -> str:
    """The plan as people read it."""
    out: list[str] = []
    for pool in plan.pools:
        ages = [r.age_days for r in pool.rungs if r.usd_hour is not None]
        out.append(f"pool {pool.name} · {pool.nodes} nodes{_ages(ages, pool)}")
        if pool.rungs:
            out.append("  rung  market     zone        shape             $/h   expected*    age")
        out += _rows(pool.rungs, all_rungs)
    out.append(
        f"at min {_usd(plan.usd_hour_min)} · at max {_usd(plan.usd_hour_max)} "
        f"(all on-demand {_usd(plan.usd_hour_max_on_demand)})"
    )
    if plan.side_usd_hour_max is not None:
        out.append(
            f"on top, at max: about {_usd(plan.side_usd_hour_max)} of disks and transfer between zones "
            "(in no budget and no ledger)"
        )
    out += plan.refused
    for quota in plan.quotas:
        have = "not known" if quota.allowed is None else f"the account has {quota.allowed}"
        more = (
            f", ask for {quota.ask_for} more" if quota.allowed is not None and quota.ask_for else ""
        )
        out.append(
            f"quota {quota.family} {quota.market}: {quota.needed} {quota.unit} at max, {have}{more}"
        )
    if plan.quotas_unknown and plan.quotas:
        out.append(f"what the account has is not known: {plan.quotas_unknown}")
    if plan.rework:
        out.append(plan.rework)
    out += [f"note: {w}" for w in plan.warnings]
    out.append("* (price + disk + cross-zone transfer) × (1 + expected re-work)")
    return "\n".join(out)


def _ages(ages: list[int | None], pool: PoolTable) -> str:
    if not pool.rungs:
        return " · your own machines, no price"
    known = [a for a in ages if a is not None]
    if not known:
        return " · prices of unknown age" if ages else " · no prices"
    text = f" · prices {min(known)} to {max(known)} days old"
    return text + (", refresh them" if max(known) > STALE_DAYS else "")


def _rows(rungs: list[Rung], all_rungs: bool) -> list[str]:
    """The first of each market, then how many more."""
    out = []
    for market in ("spot", "on-demand"):
        mine = [r for r in rungs if r.market == market]
        shown = mine if all_rungs else mine[:TOLD_RUNGS]
        out += [_row(r) for r in shown]
        if len(mine) > len(shown):
            out.append(f"     …  {len(mine) - len(shown)} more")
    return out


def _row(r: Rung) -> str:
    price = f"{r.usd_hour:8.3f}" if r.usd_hour is not None else (
        f"<={r.at_most_usd_hour:6.3f}" if r.at_most_usd_hour is not None else "       ?"
    )  # fmt: skip
    expected = f"{r.expected_usd_hour:8.3f}" if r.expected_usd_hour is not None else "       ?"
    age = f"{r.age_days} d" if r.age_days is not None else "?"
    return (
        f"  {r.number:4}  {r.market:9}  {r.zone:10}  {r.shape:14} {price}    {expected}  {age:>6}"
    )


def _usd(value: float | None) -> str:
    return "no price" if value is None else f"${value:.2f}/h"


def to_json(plan: Plan) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(plan)
