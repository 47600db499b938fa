"""Offers: a market in a zone for a shape, ranked by the expected cost of an hour of useful work.

Pure: prices, shapes and the interruption record come in, a ladder comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date

from sundog.market.prices import Market, PriceBook
from sundog.market.shapes import Shape

# Before a zone has a record of its own: one interruption in 20 node-hours, worth 20 node-hours of
# evidence. A prior, said as such wherever it shows; the zone's own record soon outweighs it.
PRIOR_INTERRUPTIONS = 1.0
PRIOR_NODE_HOURS = 20.0
# What one interruption costs in work: half a ten-minute checkpoint interval, and a restart.
LOST_HOURS_PER_INTERRUPTION = (300 + 60) / 3600
# Data that a node exchanges with other zones while it works; the clouds bill both directions.
CROSS_ZONE_GIB_HOUR = 1.0
CROSS_ZONE_USD_GIB = {"aws": 0.02, "gcp": 0.01, "azure": 0.0}
# By kind of disk, and "" for a kind that is not named here.
DISK_USD_GIB_MONTH: dict[str, dict[str, float]] = {
    "aws": {"": 0.08, "gp2": 0.10, "io1": 0.125, "io2": 0.125, "st1": 0.045, "sc1": 0.015},
    "gcp": {"": 0.10, "pd-standard": 0.04, "pd-ssd": 0.17, "hyperdisk-balanced": 0.08},
    "azure": {"": 0.12},
}
HOURS_PER_MONTH = 730.0
# Spot without a known price is bounded by its own on-demand price. Past this multiple of the
# cheapest on-demand offer it is no bargain even then, only one more refused call.
UNPRICED_SPOT_LIMIT = 1.5


@dataclass(frozen=True, slots=True)
class Record:
    """What became of spot nodes of one shape in one zone."""

    node_hours: float = 0.0
    interruptions: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """One rung. `usd_hour` None: no price is known, and it cannot exceed `bound_usd_hour`.

    `side_usd_hour` is disks and cross-zone transfer; `expected_usd_hour` has it and the re-work in.
    """

    cloud: str
    market: Market
    region: str
    zone: str
    shape: str
    quota: str
    usd_hour: float | None
    bound_usd_hour: float | None
    expected_usd_hour: float | None
    priced_on: date | None = None
    side_usd_hour: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.market}/{self.zone}/{self.shape}"

    @property
    def quota_key(self) -> str:
        return f"{self.market}/{self.region}/{self.quota}"

    @property
    def ceiling_usd_hour(self) -> float | None:
        """What a budget must set aside for it."""
        return self.usd_hour if self.usd_hour is not None else self.bound_usd_hour

    def __str__(self) -> str:
        return f"{self.market} {self.zone} {self.shape}"


def rework(record: Record) -> float:
    """Share of work that interruptions cost: hazard an hour × hours lost to each.

    The hazard is the posterior mean of a Poisson rate under the gamma prior above.
    """
    hazard = (PRIOR_INTERRUPTIONS + record.interruptions) / (PRIOR_NODE_HOURS + record.node_hours)
    return hazard * LOST_HOURS_PER_INTERRUPTION


def side_costs_usd_hour(
    cloud: str, disk_gib: float, other_zone: bool, disk_kind: str = ""
) -> float:
    """Disks and cross-zone transfer of one node, in dollars an hour."""
    kinds = DISK_USD_GIB_MONTH.get(cloud, {"": 0.0})
    disk = disk_gib * kinds.get(disk_kind, kinds[""]) / HOURS_PER_MONTH
    transfer = CROSS_ZONE_GIB_HOUR * CROSS_ZONE_USD_GIB.get(cloud, 0.0) if other_zone else 0.0
    return disk + transfer


def ladder(
    *, cloud: str, region: str, zones: Iterable[str], shapes: Iterable[Shape], book: PriceBook,
    markets: Iterable[Market], rungs: int = 8, max_price: float | None = None,
    disk_gib: float = 0.0, disk_kind: str = "", one_zone: bool = False,
    records: Mapping[str, Record] | None = None,
) -> list[Offer]:  # fmt: skip
    """The rungs in the order to try them: cheapest expected cost first, within each market.

    Spot comes before on-demand. At most `rungs` a market, because each refused rung is a call that
    a waiting job waits for. Spot that is expected to cost more than the cheapest on-demand offer,
    and anything above `max_price`, is left out.
    """
    places, kinds = list(zones) or [""], list(shapes)
    # A gang in one zone exchanges nothing with another.
    side = side_costs_usd_hour(cloud, disk_gib, len(places) > 1 and not one_zone, disk_kind)
    found: dict[Market, list[Offer]] = {}
    for market in markets:
        offers = [
            _offer(cloud, market, region, zone, shape, book, side, records or {})
            for shape in kinds
            for zone in places
        ]
        found[market] = [o for o in offers if _affordable(o, max_price)]
    full = [o.expected_usd_hour for o in found.get("on-demand", ()) if o.expected_usd_hour]
    if full and "spot" in found:
        found["spot"] = [o for o in found["spot"] if _worth_trying(o, min(full))]
    out: list[Offer] = []
    for market in ("spot", "on-demand"):
        out += _diverse(found.get(market, []), rungs)  # type: ignore[call-overload]
    return out


def _worth_trying(spot: Offer, cheapest_full_usd_hour: float) -> bool:
    if spot.expected_usd_hour is None:
        return True
    limit = 1.0 if spot.usd_hour is not None else UNPRICED_SPOT_LIMIT
    return spot.expected_usd_hour <= cheapest_full_usd_hour * limit


def _affordable(offer: Offer, max_price: float | None) -> bool:
    if max_price is None:
        return True
    if offer.usd_hour is None:
        # A spot request carries its own limit to the cloud; an on-demand one cannot.
        return offer.market == "spot"
    return offer.usd_hour <= max_price


def _offer(
    cloud: str, market: Market, region: str, zone: str, shape: Shape, book: PriceBook,
    side: float, records: Mapping[str, Record],
) -> Offer:  # fmt: skip
    price = book.find(cloud, market, region, zone, shape.name)
    full = book.find(cloud, "on-demand", region, zone, shape.name)
    usd_hour = price.usd_hour if price else None
    # A spot price never exceeds the on-demand one, so that bounds what we do not know.
    bound = full.usd_hour if full else None
    base = usd_hour if usd_hour is not None else bound
    return Offer(
        cloud, market, region, zone, shape.name, shape.quota(market), usd_hour, bound,
        _expected(market, f"{zone}/{shape.name}", base, side, records),
        price.day if price else (full.day if full else None), side,
    )  # fmt: skip


def _expected(
    market: Market, place: str, base: float | None, side: float, records: Mapping[str, Record]
) -> float | None:
    if base is None:
        return None
    lost = rework(records.get(place, Record())) if market == "spot" else 0.0
    return (base + side) * (1 + lost)


def repriced(
    offers: Iterable[Offer], spot_usd_hour: Mapping[tuple[str, str], float],
    records: Mapping[str, Record], day: date,
) -> tuple[Offer, ...]:  # fmt: skip
    """The same rungs at today's spot prices (by zone and shape) and with what became of such nodes,

    in their new order: spot that now costs more than on-demand comes after it.
    """
    new = []
    for o in offers:
        usd, on = o.usd_hour, o.priced_on
        if o.market == "spot" and (o.zone, o.shape) in spot_usd_hour:
            usd, on = spot_usd_hour[o.zone, o.shape], day
        base = usd if usd is not None else o.bound_usd_hour
        expected = _expected(o.market, f"{o.zone}/{o.shape}", base, o.side_usd_hour, records)
        new.append(replace(o, usd_hour=usd, expected_usd_hour=expected, priced_on=on))
    spot = sorted((o for o in new if o.market == "spot"), key=_cost)
    full = sorted((o for o in new if o.market != "spot"), key=_cost)
    cheapest = min((o.expected_usd_hour for o in full if o.expected_usd_hour), default=None)
    good = [o for o in spot if cheapest is None or _worth_trying(o, cheapest)]
    return (*good, *full, *(o for o in spot if o not in good))


def _diverse(offers: list[Offer], rungs: int) -> list[Offer]:
    """The `rungs` cheapest, but of more than one shape: refusals come by shape as by zone."""
    ordered = sorted(offers, key=_cost)
    per_shape = max(1, -(-rungs // max(1, min(2, len({o.shape for o in ordered})))))
    taken: dict[str, int] = {}
    first, rest = [], []
    for offer in ordered:
        if taken.get(offer.shape, 0) < per_shape:
            taken[offer.shape] = taken.get(offer.shape, 0) + 1
            first.append(offer)
        else:
            rest.append(offer)
    return sorted((first + rest)[:rungs], key=_cost)


def _cost(o: Offer) -> tuple[bool, float, str]:
    # A known price before a bound: only one of them was ever seen.
    expected = o.expected_usd_hour if o.expected_usd_hour is not None else float("inf")
    return (o.usd_hour is None, expected, o.key)
