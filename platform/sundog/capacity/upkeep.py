"""Keeps a running cluster's ladder current: spot prices from the market, re-work from the ledger.

A failure costs freshness only: the prices and the order from before stay in force.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from datetime import UTC, datetime

from sundog.capacity.launching import Buyer, price_of
from sundog.capacity.records import WINDOW_S, spot_records
from sundog.capacity.state import PoolPlan
from sundog.clock import Clock
from sundog.errors import CapacityError, SundogError
from sundog.market.offers import Record, repriced

logger = logging.getLogger(__name__)

PRICES_EVERY_S = 600.0
RECORDS_EVERY_S = 6 * 3600.0
# A smaller change is not worth a ledger entry.
CHANGE = 0.01


class Upkeep:
    """`plans` are replaced in place. `step` asks the cloud at most every ten minutes."""

    def __init__(self, buyer: Buyer, plans: MutableMapping[str, PoolPlan], clock: Clock) -> None:
        self._buyer, self._plans, self._clock = buyer, plans, clock
        # The first step waits: a cluster that is just starting has better things to ask the cloud.
        self._prices_s = clock.now_s() + PRICES_EVERY_S
        self._records_s = clock.now_s()
        self.records: dict[str, Record] = {}
        self._lock = threading.Lock()

    def step(self) -> None:
        now_s = self._clock.now_s()
        with self._lock:  # one of the threads that list nodes at once does it
            if now_s < self._prices_s:
                return
            self._prices_s = now_s + PRICES_EVERY_S
        if now_s >= self._records_s:
            self._records_s = now_s + RECORDS_EVERY_S
            self._read_records(now_s)
        shapes = {o.shape for p in self._plans.values() for o in p.offers if o.market == "spot"}
        if not shapes:
            return
        try:
            prices = self._buyer.cloud.spot_prices(sorted(shapes))
            self._reprice_nodes(prices)
        except CapacityError as error:
            logger.warning("prices not refreshed: %s", error)
            return
        today = datetime.fromtimestamp(now_s, UTC).date()
        for name, plan in list(self._plans.items()):
            offers = repriced(plan.offers, prices, self.records, today)
            self._plans[name] = replace(plan, offers=offers)

    def _reprice_nodes(self, prices: Mapping[tuple[str, str], float]) -> None:
        for machine in self._buyer.machines():
            usd, old = prices.get((machine.zone, machine.shape)), price_of(machine)
            if machine.market != "spot" or usd is None:
                continue
            if old is None or abs(usd - old) > CHANGE * old:
                self._buyer.reprice(machine, usd)

    def _read_records(self, now_s: float) -> None:
        try:
            entries = self._buyer.ledger.since(now_s - WINDOW_S)
            self.records = spot_records(entries, now_s)
        except (OSError, SundogError) as error:
            logger.warning("interruptions of the past not read: %s", error)
