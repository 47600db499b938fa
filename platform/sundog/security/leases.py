"""How much of a key's rate and of its day's quotas each gateway may use now. Pure: values in, values out.

Gateways report what they spent and what they still hold; an answer lets holdings grow only into what
nobody holds. So limits hold over all gateways without anybody waiting for control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEASE_S = 1.0
"""A lease covers about twice what a gateway uses in so long."""
IDLE_SHARE = 0.1
"""Of a rate, what is kept for gateways where nobody asks at the moment."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One gateway's part of one quota of one day, counted since it started (or since midnight)."""

    spent: int
    held: int
    """it may spend up to this count"""
    demand: float = 0.0
    """asked for each second"""
    live: bool = True


@dataclass(frozen=True, slots=True)
class Lease:
    """`limit`: spend up to this count; `reserve`: up to this one while control is away; `left`: what
    is left of the day over all gateways."""

    limit: int
    reserve: int
    left: int


def lease(quota: int, holdings: Mapping[str, Holding], who: str, credit: int = 0) -> Lease:
    """The next lease of gateway `who`. `credit`: spent twice by mistake, so not counted.

    The holdings of the living and what the gone have spent never add up to more than the quota,
    except where the gone spent what they did not report: at most their last lease each.
    """
    me = holdings[who]
    live = [h for h in holdings.values() if h.live]
    left = max(0, quota + credit - sum(h.spent for h in holdings.values()))
    taken = sum(
        max(h.held, h.spent) if h.live else h.spent for w, h in holdings.items() if w != who
    )
    free = max(0, quota + credit - taken - me.spent)
    want = min(_size(quota, left, len(live), me.demand), free)
    return Lease(me.spent + want, me.spent + max(want, left // len(live)), left)


def _size(quota: int, left: int, gateways: int, demand: float) -> int:
    if gateways == 1:  # the rest is for one that takes its place before it is known to be gone
        return math.ceil(left / 2)
    # What is parked with idle gateways cannot be used elsewhere: little, and nothing near the end.
    idle = min(first_lease(quota), left // (2 * gateways))
    if demand <= 0:
        return idle
    asked = max(first_lease(quota), math.ceil(2 * demand * LEASE_S))
    return max(idle, min(asked, math.ceil(left / gateways)))


def first_lease(quota: int) -> int:
    """What a gateway may spend before it has heard from control."""
    return max(1, quota // 50)


@dataclass(frozen=True, slots=True)
class Share:
    """One gateway's part of a rate: what it applies, or may have been told to, and what is asked."""

    held: float
    demand: float


def share(gateways: Mapping[str, Share], who: str) -> float:
    """The part of a key's rate that gateway `who` may let through; parts never exceed 1 together."""
    demand = sum(g.demand for g in gateways.values())
    even = 1.0 / len(gateways)
    mine = gateways[who].demand / demand if demand > 0 else even
    want = IDLE_SHARE * even + (1 - IDLE_SHARE) * mine
    free = 1.0 - sum(g.held for w, g in gateways.items() if w != who)
    return max(0.0, min(want, free))
