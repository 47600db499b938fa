"""What capacity decisions look at: pools, nodes, cool-downs. Values only, no clock, no cloud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, Literal

from sundog.errors import FormatTooNew
from sundog.market.offers import Offer

FORMAT = 1

Refusal = Literal["capacity", "price", "quota", "unsupported"]
# What stops a whole pool, because no other rung would fare better.
Hold = Literal["denied", "rejected", "cloud-away"]


@dataclass(frozen=True, slots=True)
class Cooldown:
    """Until when an offer (all of a quota, all of a pool) is not tried, after how many refusals in a

    row. `state` is what a pool's wait is called meanwhile.
    """

    failures: int
    since_s: float
    until_s: float
    reason: str
    state: str = "refused"


@dataclass(frozen=True, slots=True)
class Node:
    """A live machine, as its tags describe it. `busy` None: nobody knows; `idle_s` where it is not."""

    id: str
    pool: str
    market: str
    zone: str
    shape: str
    usd_hour: float | None
    launched_s: float
    busy: bool | None = None
    draining: bool = False
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool with its ladder, in the order to try it. Ray itself holds it to `max_nodes`."""

    name: str
    offers: tuple[Offer, ...]
    on_demand_floor: int = 0
    max_price_usd_hour: float | None = None
    one_zone: bool = False
    hand_back: float = 0.25
    max_nodes: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """Everything a decision may know. `head_usd_hour` counts towards the budget.

    `wanted` are the pools that somebody asked for lately and did not get in full.
    """

    now_s: float
    nodes: tuple[Node, ...] = ()
    cooldowns: Mapping[str, Cooldown] = field(default_factory=dict)
    budget_usd_hour: float | None = None
    head_usd_hour: float | None = None
    wanted: frozenset[str] = frozenset()

    def of(self, pool: str) -> list[Node]:
        return [n for n in self.nodes if n.pool == pool]

    @property
    def spent_usd_hour(self) -> float:
        """What runs now. A node without a price is refused under a budget, so none hides here."""
        return (self.head_usd_hour or 0.0) + sum(n.usd_hour or 0.0 for n in self.nodes)


def plans_to_dict(plans: Mapping[str, PoolPlan]) -> dict[str, Any]:
    """What a compiled cluster file carries for the provider."""
    pools = {}
    for name, plan in plans.items():
        row = asdict(plan)
        row["offers"] = [_offer_to_dict(o) for o in plan.offers]
        pools[name] = row
    return {"format": FORMAT, "pools": pools}


def plans_from_dict(data: Mapping[str, Any]) -> dict[str, PoolPlan]:
    if data.get("format", 0) > FORMAT:
        raise FormatTooNew(
            f"the cluster file's ladder has format {data['format']}, this Sundog reads {FORMAT}",
            "install on the head the Sundog that compiled the file",
        )
    plans = {}
    for name, row in data["pools"].items():
        offers = tuple(_offer_from_dict(o) for o in row["offers"])
        plans[name] = PoolPlan(**(dict(row) | {"offers": offers}))
    return plans


def _offer_to_dict(offer: Offer) -> dict[str, Any]:
    row = asdict(offer)
    row["priced_on"] = offer.priced_on.isoformat() if offer.priced_on else None
    for key in ("usd_hour", "bound_usd_hour", "expected_usd_hour", "side_usd_hour"):
        row[key] = None if row[key] is None else round(row[key], 6)
    return row


def _offer_from_dict(row: Mapping[str, Any]) -> Offer:
    day = row.get("priced_on")
    return Offer(**(dict(row) | {"priced_on": date.fromisoformat(day) if day else None}))
