"""What a run has cost so far: node-seconds of the nodes its workers are on, in dollars by their records.

A node without a price makes the whole bill node-hours: there is no guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sundog.clock import WALL, Clock
from sundog.errors import SundogError
from sundog.market.prices import cost_between, price_at
from sundog.storage.root import Root

_REREAD_S = 60.0  # a node's price may change while it lives
_MISSED_S = 5.0  # a new node's record comes seconds after its node


class Prices:
    """The records of nodes in a storage root, read again once a minute."""

    def __init__(self, root: Root, clock: Clock = WALL) -> None:
        self._root, self._clock = root, clock
        self._records: dict[str, tuple[float, dict[str, Any]]] = {}

    def usd_hour(self, node_ids: Iterable[str]) -> float | None:
        """What these nodes cost together in an hour, at this moment; None if one has no price."""
        prices = [price_at(self.record(node), self._clock.now_s()) for node in set(node_ids)]
        known = [price for price in prices if price is not None]
        return sum(known) if prices and len(known) == len(prices) else None

    def between(self, node_id: str, start_s: float, end_s: float) -> float | None:
        """Dollars of a node in this span of Unix time."""
        return cost_between(self.record(node_id), start_s, end_s)

    def record(self, node_id: str) -> dict[str, Any]:
        read_s, record = self._records.get(node_id, (float("-inf"), {}))
        if self._clock.monotonic_s() - read_s > (_REREAD_S if record else _MISSED_S):
            try:
                record = json.loads(self._root.read(f"nodes/{node_id}.json"))
            except (SundogError, ValueError):
                record = {}
            self._records[node_id] = (self._clock.monotonic_s(), record)
        return record


@dataclass(frozen=True)
class Spent:
    """`usd` has no part for nodes without a price: it is of use only while the bill has dollars."""

    node_seconds: float
    usd: float


class Bill:
    """Adds up a live run's nodes. `before` is what its drivers before this one had on it."""

    def __init__(self, prices: Prices, node_hours: float = 0.0, usd: float | None = None) -> None:
        self._prices = prices
        self.node_hours = node_hours
        self.usd: float | None = usd if node_hours else 0.0

    def add(self, node_ids: Sequence[str], start_s: float, end_s: float) -> Spent:
        """The run had these nodes in this span of Unix time, or since they began within it."""
        seconds, dollars = 0.0, 0.0
        for node in set(node_ids):
            began_s = max(start_s, float(self._prices.record(node).get("started_s") or start_s))
            if began_s >= end_s:
                continue
            seconds += end_s - began_s
            usd = self._prices.between(node, began_s, end_s)
            dollars += usd or 0.0
            self.usd = None if usd is None or self.usd is None else self.usd + usd
        self.node_hours += seconds / 3600
        return Spent(seconds, dollars)
