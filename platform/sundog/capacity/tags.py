"""The tags that a machine is born with, and what they say of it. A head that starts anew has no more."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from sundog.capacity.state import Node
from sundog.clouds.base import Machine

POOL_TAG, MARKET_TAG, ZONE_TAG = "sundog:pool", "sundog:market", "sundog:zone"
PRICE_TAG, TOKEN_TAG, WHY_TAG = "sundog:usd-hour", "sundog:token", "sundog:why"
PRICE_DAY_TAG = "sundog:price-day"  # on which day the price was the cloud's
DRAINING_TAG = "sundog:draining"
TYPE_TAG = "ray-user-node-type"


def price_of(machine: Machine) -> float | None:
    try:
        return float(machine.tags[PRICE_TAG])
    except (KeyError, ValueError):
        return None


def price_day_of(machine: Machine) -> date | None:
    try:
        return date.fromisoformat(machine.tags[PRICE_DAY_TAG])
    except (KeyError, ValueError):
        return None


def with_price(machine: Machine, usd_hour: float) -> Machine:
    return replace(machine, tags={**machine.tags, PRICE_TAG: f"{usd_hour:.6f}"})


def node_of(machine: Machine, busy: bool | None = None) -> Node:
    return Node(
        machine.id, machine.tags.get(POOL_TAG, ""), machine.market, machine.zone, machine.shape,
        price_of(machine), machine.launched_s, busy, DRAINING_TAG in machine.tags,
    )  # fmt: skip
