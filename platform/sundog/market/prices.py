"""Prices with their day. The only source of dollars: no price means None, never a guess.

A bad row (spot above on-demand, a shape nobody knows, a price that is no price) is rejected with
its reason, never repaired.
"""

from __future__ import annotations

import csv
import gzip
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from typing import Any, Literal

from sundog.market.shapes import Catalogue, catalogue

Market = Literal["spot", "on-demand"]


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars an hour for one shape in a region, or in one zone of it (`zone` "" is every zone)."""

    cloud: str
    market: Market
    region: str
    zone: str
    shape: str
    usd_hour: float
    day: date | None
    source: str = "snapshot"

    def age_days(self, now_s: float) -> int | None:
        """Whole days between the price's day and now; None where its source told no day."""
        if self.day is None:
            return None
        return (datetime.fromtimestamp(now_s, UTC).date() - self.day).days


@dataclass(frozen=True, slots=True)
class Rejected:
    row: Price
    reason: str


class PriceBook:
    """Prices by cloud, market, place and shape, of the machines in `shapes`. Immutable; `with_more` makes a
    newer book."""

    def __init__(self, rows: Iterable[Price], shapes: Catalogue | None = None) -> None:
        self.shapes = known = shapes or catalogue()
        self.rejected: list[Rejected] = []
        self._prices: dict[tuple[str, str, str, str, str], Price] = {}
        ordered = sorted(rows, key=lambda p: p.market)  # on-demand first: it bounds spot
        for row in ordered:
            reason = self._fault(row, known)
            if reason:
                self.rejected.append(Rejected(row, reason))
                continue
            key = (row.cloud, row.market, row.region, row.zone, row.shape)
            old = self._prices.get(key)
            if old is None or (row.day or date.min) >= (old.day or date.min):
                self._prices[key] = row

    def _fault(self, row: Price, shapes: Catalogue) -> str:
        if not 0 < row.usd_hour < 10_000:
            return f"{row.usd_hour} is not a price by the hour"
        if row.market not in ("spot", "on-demand"):
            return f"{row.market!r} is not a market"
        if shapes.shape(row.cloud, row.shape) is None:
            return f"no shape {row.shape!r} is known on {row.cloud}"
        if row.market == "spot":
            full = self._prices.get((row.cloud, "on-demand", row.region, "", row.shape))
            if full and row.usd_hour > full.usd_hour:
                return f"spot ${row.usd_hour:g} is above on-demand ${full.usd_hour:g}"
        return ""

    def find(self, cloud: str, market: str, region: str, zone: str, shape: str) -> Price | None:
        """The zone's price, else the region's, else None."""
        return self._prices.get((cloud, market, region, zone, shape)) or self._prices.get(
            (cloud, market, region, "", shape)
        )

    def zones(self, cloud: str, region: str) -> list[str]:
        return sorted({z for (c, _, r, z, _) in self._prices if c == cloud and r == region and z})

    def regions(self, cloud: str, shape: str | None = None) -> list[str]:
        return sorted({r for (c, _, r, _, s) in self._prices if c == cloud and shape in (None, s)})

    def rows(self) -> list[Price]:
        return list(self._prices.values())

    def with_more(self, rows: Iterable[Price], shapes: Catalogue | None = None) -> PriceBook:
        return PriceBook([*self._prices.values(), *rows], shapes or self.shapes)


def read_prices(rows: Iterable[Mapping[str, str]], source: str = "snapshot") -> list[Price]:
    return [
        Price(
            r["cloud"], r["market"], r["region"], r["zone"], r["shape"], float(r["usd_hour"]),  # type: ignore[arg-type]
            date.fromisoformat(r["date"]) if r["date"] else None, source,
        )
        for r in rows
    ]  # fmt: skip


@cache
def snapshot() -> PriceBook:
    """The prices that ship with the package; `data/README.md` says where each is from."""
    packed = resources.files("sundog.market").joinpath("data/prices.csv.gz").read_bytes()
    return PriceBook(read_prices(csv.DictReader(gzip.decompress(packed).decode().splitlines())))


def price_at(node: Mapping[str, Any], t: float) -> float | None:
    """Dollars an hour of a node at Unix time `t`, from its record alone.

    `node["prices"]` is [[since_s, usd_hour], …] in the order of time, appended to when the price
    changes. None before the first entry, or where the record has none: then there are node-hours,
    not dollars.
    """
    current: float | None = None
    for since_s, usd_hour in node.get("prices") or ():
        if since_s > t:
            break
        current = None if usd_hour is None else float(usd_hour)
    return current


def cost_between(node: Mapping[str, Any], start_s: float, end_s: float) -> float | None:
    """Dollars a node cost from `start_s` to `end_s`; None if any part of it has no price."""
    edges = sorted(
        {start_s, end_s, *(s for s, _ in node.get("prices") or () if start_s < s < end_s)}
    )
    total = 0.0
    for low, high in itertools.pairwise(edges):
        rate = price_at(node, low)
        if rate is None:
            return None
        total += rate * (high - low) / 3600
    return total
