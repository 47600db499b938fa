"""From a parsed spec to what can be bought for it, or an error that names the line and the way out.

The only place where a spec meets shapes and prices. Asks no cloud.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sundog.capacity.places import check_names, region_known, zones
from sundog.capacity.state import PoolPlan
from sundog.clouds.aws_efa import EFA_CARDS
from sundog.errors import SpecError
from sundog.market.offers import Offer, Record, ladder
from sundog.market.prices import Market, PriceBook, snapshot
from sundog.market.shapes import Catalogue, Shape
from sundog.spec.cluster import ClusterSpec, Pool
from sundog.spec.load import Location, read_text, read_yaml, validate
from sundog.spec.quantity import GIB


@dataclass(frozen=True)
class Source:
    """A spec as it stands in its file, so that a later fault can still name its line."""

    path: str
    text: str
    lines: Mapping[Location, int]
    spec: ClusterSpec

    def fault(self, at: Location, message: str, fix: str) -> SpecError:
        line = next((self.lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.lines), 1)
        return SpecError(f"{self.path}:{line}: {'.'.join(map(str, at))}: {message}", fix)


@dataclass(frozen=True)
class Bought:
    """What a spec comes to: a ladder for each pool and the shapes behind it.

    `shapes` are those of the ladder; `fitting` all that meet the need and are sold in the region.
    """

    source: Source
    market_cloud: str
    pools: Mapping[str, PoolPlan]
    shapes: Mapping[str, tuple[Shape, ...]]
    head: Shape | None
    head_usd_hour: float | None
    book: PriceBook
    fitting: Mapping[str, tuple[Shape, ...]] = field(default_factory=dict)
    region_known: bool = True

    @property
    def spec(self) -> ClusterSpec:
        return self.source.spec


def read_spec(path: str | Path) -> Source:
    text = read_text(path)
    data, lines = read_yaml(text, str(path))
    return Source(str(path), text, lines, validate(data, ClusterSpec, str(path), lines))


def check(
    source: Source, book: PriceBook | None = None, shapes: Catalogue | None = None,
    records: Mapping[str, Record] | None = None,
) -> Bought:  # fmt: skip
    """Every pool's ladder. SpecError for an unknown shape, a pool that nothing fits, a region

    without the GPU, or a budget that does not even cover the floor.
    """
    prices, spec = book or snapshot(), source.spec
    known = shapes or prices.shapes
    cloud = spec.cloud.kuberay.nodes_of if spec.cloud.kuberay else spec.cloud.name
    check_names(source)
    if cloud == "onprem":
        plans = {n: PoolPlan(n, (), max_nodes=len(p.hosts)) for n, p in spec.pools.items()}
        return Bought(source, cloud, plans, dict.fromkeys(plans, ()), None, None, prices)
    known_region = region_known(source, cloud, prices)
    places = zones(source, cloud, prices)
    pools: dict[str, PoolPlan] = {}
    rungs: dict[str, tuple[Shape, ...]] = {}
    fitting: dict[str, tuple[Shape, ...]] = {}
    for name, pool in spec.pools.items():
        if spec.cloud.aws is not None:
            _placement(source, name, pool)
        found = _fitting(source, cloud, name, pool, known, prices)
        offers = _offers(source, cloud, name, pool, places, found, prices, records)
        used = {o.shape for o in offers}
        fitting[name] = tuple(found)
        rungs[name] = tuple(s for s in found if s.name in used)
        pools[name] = PoolPlan(
            name, tuple(offers), pool.on_demand_floor, pool.max_price, pool.one_zone,
            pool.hand_back, pool.nodes.high or 0,
        )  # fmt: skip
    head = _head(source, cloud, known, prices)
    price = prices.find(cloud, "on-demand", spec.cloud.region, "", head.name)
    bought = Bought(
        source, cloud, pools, rungs, head, price.usd_hour if price else None, prices, fitting,
        known_region,
    )  # fmt: skip
    _budget(bought)
    return bought


def _placement(source: Source, name: str, pool: Pool) -> None:
    if pool.placement_group and not pool.one_zone:
        raise source.fault(
            ("pools", name, "placement_group"), "a cluster placement group lies in one zone",
            "write one_zone: true too",
        )  # fmt: skip


def _fitting(
    source: Source, cloud: str, name: str, pool: Pool, known: Catalogue, book: PriceBook
) -> list[Shape]:
    at: Location = ("pools", name)
    for shape in pool.shapes:
        if known.shape(cloud, shape) is None:
            near = known.near(cloud, shape)
            fix = f"did you mean {near[0]!r}?" if near else "leave `shapes` out: `need` finds them"
            raise source.fault((*at, "shapes"), f"no shape {shape!r} on {cloud}", fix)
    gpu = pool.need.gpu
    if gpu and gpu.kind not in known.gpu_kinds(cloud):
        kinds = known.gpu_kinds(cloud)
        near = difflib.get_close_matches(gpu.kind, kinds, 1)
        raise source.fault(
            (*at, "need", "gpu"), f"no GPU {gpu.kind!r} on {cloud}",
            (f"did you mean {near[0]!r}?  " if near else "") + f"({', '.join(kinds)})",
        )  # fmt: skip
    found = known.fitting(cloud, pool.need, pool.shapes)
    if not found:
        raise source.fault((*at, "need"), "no shape has all of this", _nearest(cloud, pool, known))
    here = _sold_here(source, cloud, at, found, book)
    return _with_efa(source, at, here) if cloud == "aws" and pool.network == "efa" else here


def _with_efa(source: Source, at: Location, found: list[Shape]) -> list[Shape]:
    """A fast network is part of the need: only the shapes that have it."""
    able = [s for s in found if s.name in EFA_CARDS]
    if not able:
        raise source.fault(
            (*at, "network"), f"none of {', '.join(s.name for s in found[:6])} has EFA",
            "ask for a larger shape, or leave `network` out",
        )  # fmt: skip
    return able


def _nearest(cloud: str, pool: Pool, known: Catalogue) -> str:
    """Which shapes come closest: those with the GPU, said with what they have."""
    gpu = pool.need.gpu
    same = [s for s in known.of(cloud) if s.accelerator == (gpu.kind if gpu else "")]
    same = [s for s in same if not pool.shapes or s.name in pool.shapes] or same
    if not gpu:
        same = sorted(same, key=lambda s: abs(s.vcpus - pool.need.cpus.low))
    else:
        same = sorted(same, key=lambda s: (abs(s.accelerators - gpu.count), s.vcpus))
    told = [
        f"{s.name} ({s.accelerator + f' x{s.accelerators}, ' if s.accelerator else ''}"
        f"{s.vcpus} vCPU, {s.memory_gib:g} GiB)"
        for s in same[:3]
    ]
    return f"nearest: {'; '.join(told)}"


def _sold_here(
    source: Source, cloud: str, at: Location, found: list[Shape], book: PriceBook
) -> list[Shape]:
    """Only shapes sold in the region, where the book lists it; a region it lacks is taken as is."""
    region = source.spec.cloud.region
    listed = any(
        p.cloud == cloud and p.region == region and p.market == "on-demand" for p in book.rows()
    )
    if not listed:
        return found
    here = [s for s in found if book.find(cloud, "on-demand", region, "", s.name)]
    if here:
        return here
    elsewhere = sorted({r for s in found for r in book.regions(cloud, s.name)})
    fix = f"sold in {', '.join(elsewhere[:6])}" if elsewhere else "ask for another GPU"
    raise source.fault(
        (*at, "need"), f"{', '.join(s.name for s in found[:3])} is not sold in {region}", fix
    )


def _offers(
    source: Source, cloud: str, name: str, pool: Pool, places: list[str], found: list[Shape],
    book: PriceBook, records: Mapping[str, Record] | None,
) -> list[Offer]:  # fmt: skip
    markets: dict[str, tuple[Market, ...]] = {
        "spot-first": ("spot", "on-demand"), "spot-only": ("spot",), "on-demand": ("on-demand",)
    }  # fmt: skip

    def rungs(of: tuple[Market, ...], **limits: Any) -> list[Offer]:
        return ladder(
            cloud=cloud, region=source.spec.cloud.region, zones=places, shapes=found, book=book,
            markets=of, **limits,
        )  # fmt: skip

    offers = rungs(
        markets[pool.market], rungs=pool.rungs, max_price=pool.max_price,
        disk_gib=pool.disk.size / GIB, disk_kind=pool.disk.kind, one_zone=pool.one_zone,
        records=records,
    )  # fmt: skip
    # A floor without an on-demand rung would be owed for ever.
    full = pool.on_demand_floor > 0
    if any(o.market == "on-demand" or not full for o in offers):
        return offers
    free = rungs(("on-demand",) if full else markets[pool.market])
    cheapest = min((o.usd_hour for o in free if o.usd_hour is not None), default=None)
    what = "no on-demand offer, as the floor needs," if full else "no offer"
    if pool.max_price is None:
        raise source.fault(("pools", name, "market"), f"{what} is left", "write market: spot-first")
    raise source.fault(
        ("pools", name, "max_price"), f"{what} is at or under ${pool.max_price:g}/h",
        f"the cheapest is ${cheapest:.3f}/h" if cheapest else "raise it",
    )  # fmt: skip


def _head(source: Source, cloud: str, known: Catalogue, book: PriceBook) -> Shape:
    head = source.spec.head
    if head.shape:
        shape = known.shape(cloud, head.shape)
        if shape is None:
            near = known.near(cloud, head.shape)
            raise source.fault(
                ("head", "shape"), f"no shape {head.shape!r} on {cloud}",
                f"did you mean {near[0]!r}?" if near else "leave it out",
            )  # fmt: skip
        return shape
    # Burstable machines throttle when the control plane is busiest, so the head is not one.
    fits = [
        s for s in known.of(cloud)
        if not s.accelerators and s.arch == "amd64" and not s.family.startswith(("t2", "t3"))
        and s.vcpus >= head.cpus and s.memory_gib * GIB >= head.memory
    ]  # fmt: skip
    if not fits:
        raise source.fault(("head",), "no shape is that large", "ask for fewer cpus or less memory")

    def order(shape: Shape) -> tuple[float, int, float, str]:
        price = book.find(cloud, "on-demand", source.spec.cloud.region, "", shape.name)
        return (price.usd_hour if price else 1e9, shape.vcpus, shape.memory_gib, shape.name)

    return min(fits, key=order)


def _budget(bought: Bought) -> None:
    """A budget must cover the head and each pool's lower end and floor, that at on-demand prices.

    A floor above the lower end counts in full: a pool that may not buy what it owes buys nothing.
    """
    spec = bought.spec
    if spec.budget is None:
        return
    least = bought.head_usd_hour or 0.0
    for name, pool in spec.pools.items():
        offers = bought.pools[name].offers
        any_price = min((o.ceiling_usd_hour for o in offers if o.ceiling_usd_hour), default=None)
        if any_price is None:
            raise bought.source.fault(
                ("pools", name),
                f"no price is known in {spec.cloud.region}, so a budget would refuse every node",
                "refresh the prices of the region (docs/clusters.md), or leave `budget` out",
            )
        full = min(
            (o.usd_hour for o in offers if o.market == "on-demand" and o.usd_hour),
            default=any_price,
        )
        floor = pool.on_demand_floor
        least += floor * full + max(0, pool.nodes.low - floor) * any_price
    if least > spec.budget:
        raise bought.source.fault(
            ("budget",),
            f"${spec.budget:g}/h does not cover the head and the pools' lower ends "
            "and on-demand floors",
            f"they cost ${least:.2f}/h; raise the budget or lower `nodes` or `on_demand_floor`",
        )  # fmt: skip


def price_days(offers: list[Offer]) -> dict[str, Any]:
    """The oldest and newest day of the prices in a ladder, and how many offers have none."""
    days = sorted(o.priced_on for o in offers if o.usd_hour is not None and o.priced_on)
    return {
        "oldest": days[0].isoformat() if days else None,
        "newest": days[-1].isoformat() if days else None,
        "unpriced": sum(o.usd_hour is None for o in offers),
        "undated": sum(o.usd_hour is not None and o.priced_on is None for o in offers),
    }
