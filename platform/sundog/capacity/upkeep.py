"""Keeps a running cluster's ladder and books current: prices from the market, the past from the ledger.

At most one piece of work at a time, beside the autoscaler and never in its way. A failure costs
freshness only: the prices and the order from before stay in force.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from datetime import UTC, datetime

from sundog.capacity.launching import Buyer
from sundog.capacity.records import WINDOW_S, spot_records
from sundog.capacity.state import PoolPlan
from sundog.capacity.tags import price_of
from sundog.clock import Clock
from sundog.errors import CapacityError, SundogError
from sundog.market.offers import Record, repriced

logger = logging.getLogger(__name__)

PRICES_EVERY_S = 600.0
RECORDS_EVERY_S = 6 * 3600.0
# A storage root that was away is asked again after this.
AGAIN_S = 300.0
# `ray exec` and its like make a provider too, and are gone before the ledger would be of use.
SETTLED_S = 10.0
# A smaller change is not worth a ledger entry.
CHANGE = 0.01

Background = Callable[[Callable[[], None]], None]


def in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="sundog-upkeep", daemon=True).start()


class Upkeep:
    """`plans` are replaced in place. Prices are asked for every ten minutes, the ledger less often."""

    def __init__(
        self, buyer: Buyer, plans: MutableMapping[str, PoolPlan], clock: Clock,
        background: Background = in_a_thread,
    ) -> None:  # fmt: skip
        self._buyer, self._plans, self._clock = buyer, plans, clock
        self._background = background
        # The first prices wait: a cluster that is just starting has better things to ask the cloud.
        self._prices_s = clock.now_s() + PRICES_EVERY_S
        self._records_s = clock.now_s() + SETTLED_S
        self.records: dict[str, Record] = {}
        self._lock = threading.Lock()
        self._at_work = False

    def step(self) -> None:
        """Begin what is due. Returns at once."""
        with self._lock:  # one of the threads that list nodes at once begins it
            if self._at_work or not self._due():
                return
            self._at_work = True
        try:
            self._background(self._work)
        except RuntimeError as error:  # no thread to be had
            self._at_work = False
            logger.warning("prices and ledger not refreshed: %s", error)

    def _due(self) -> bool:
        by_time = self._clock.now_s() >= min(self._prices_s, self._records_s)
        return by_time or self._buyer.books.due()

    def _work(self) -> None:
        try:
            now_s = self._clock.now_s()
            if self._buyer.books.due():
                self._buyer.books.write_kept()
            if now_s >= self._records_s:
                self._records_s = now_s + RECORDS_EVERY_S
                self._read_ledger(now_s)
            if now_s >= self._prices_s:
                self._prices_s = now_s + PRICES_EVERY_S
                self._refresh_prices(now_s)
        except Exception:
            logger.exception("prices and ledger not refreshed")  # nobody else sees this thread
        finally:
            self._at_work = False

    def _refresh_prices(self, now_s: float) -> None:
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
        for machine in self._buyer.machines() if prices else ():
            usd, old = prices.get((machine.zone, machine.shape)), price_of(machine)
            if machine.market != "spot" or usd is None:
                continue
            if old is None or abs(usd - old) > CHANGE * old:
                self._buyer.reprice(machine, usd)

    def _read_ledger(self, now_s: float) -> None:
        books = self._buyer.books
        try:
            entries = list(books.ledger.since(now_s - WINDOW_S))
        except (OSError, SundogError) as error:
            self._records_s = now_s + AGAIN_S
            self._buyer.note("head", "ledger", f"the past is not read: {error}")
            return
        self.records = spot_records(entries, now_s)
        books.learn(entries, now_s - WINDOW_S)
