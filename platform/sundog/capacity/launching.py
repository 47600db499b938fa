"""Buys nodes down a ladder: one call a rung, the next rung at once, never the same node twice.

Holds the cool-downs and what is being bought; the decisions themselves are `decide`'s. Knows no Ray.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sundog.capacity import decide
from sundog.capacity.books import Books
from sundog.capacity.decide import Launch, Wait
from sundog.capacity.state import Cooldown, Hold, Node, PoolPlan, Refusal, View
from sundog.capacity.tags import (
    MARKET_TAG,
    POOL_TAG,
    PRICE_DAY_TAG,
    PRICE_TAG,
    TOKEN_TAG,
    WHY_TAG,
    ZONE_TAG,
    node_of,
    with_price,
)
from sundog.clock import WALL, Clock
from sundog.clouds.base import (
    AuthRefused,
    CapacityRefused,
    Cloud,
    Machine,
    Order,
    PriceRefused,
    QuotaRefused,
    Rejected,
    Transient,
    Unsupported,
)  # fmt: skip
from sundog.errors import CapacityError
from sundog.ledger import Ledger

TRANSIENT_TRIES = 3
TRANSIENT_PAUSE_S = 0.2
# EC2 may not list an instance for some seconds after it granted it.
UNLISTED_S = 120.0
# A listing may miss an instance for a moment; one that stays away this long is gone.
MISSED_S = 60.0
# Ray asks for a missing node every few seconds: one that was not asked for lately is not wanted.
WANTED_S = 60.0
KEPT_DECISIONS = 50

REFUSALS: dict[type[CapacityError], Refusal] = {
    CapacityRefused: "capacity", PriceRefused: "price", QuotaRefused: "quota",
    Unsupported: "unsupported",
}  # fmt: skip
# What no other rung would cure holds the pool, so that Ray's next asking costs no call.
HOLDS: dict[type[CapacityError], Hold] = {AuthRefused: "denied", Rejected: "rejected"}


class NothingToBuy(CapacityError):
    """No rung can be had now. `wait` says why, and when the next try makes sense."""

    def __init__(self, wait: Wait) -> None:
        super().__init__(wait.why)
        self.wait = wait


@dataclass(frozen=True)
class Request:
    """What one call of the autoscaler asks for. The head is in the budget already, and must be had."""

    pool: PoolPlan
    count: int
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    efa: bool = False
    in_budget: bool = True


class Buyer:
    """Thread-safe. `budget` and `head` in dollars an hour."""

    def __init__(
        self, cloud: Cloud, cluster: str, ledger: Ledger, *, budget_usd_hour: float | None = None,
        head_usd_hour: float | None = None, clock: Clock = WALL,
    ) -> None:  # fmt: skip
        self.cloud, self.cluster, self.clock = cloud, cluster, clock
        self.budget_usd_hour, self.head_usd_hour = budget_usd_hour, head_usd_hour
        self.cooldowns: dict[str, Cooldown] = {}
        self.waiting: dict[str, Wait] = {}
        self.waited_s: dict[str, float] = {}
        self.decisions: list[dict[str, Any]] = []
        self.books = Books(ledger, cluster, clock, lambda pool, why: self.note(pool, "ledger", why))
        self._lock = threading.RLock()
        self._known: dict[str, Machine] = {}
        self._unlisted: dict[str, float] = {}
        self._missed: dict[str, tuple[Machine, float]] = {}
        self._ended: set[str] = set()
        self._to_end: set[str] = set()
        self._listings = self._applied = 0
        self._in_flight: dict[str, list[Node]] = {}

    # What is there.

    def machines(self) -> list[Machine]:
        """A fresh listing, and what was granted a moment ago but is not listed yet."""
        with self._lock:
            self._listings += 1
            number, asked_s = self._listings, self.clock.now_s()
        listed = {m.id: m for m in self.cloud.machines(self.cluster)}
        with self._lock:
            if number < self._applied:
                # A listing that was asked for later is in already: this one is the past.
                return list(self._known.values())
            self._applied = number
            for id_, granted_s in list(self._unlisted.items()):
                if id_ in listed or asked_s - granted_s > UNLISTED_S:
                    del self._unlisted[id_]
            for id_ in self._unlisted:
                if id_ in self._known:
                    listed[id_] = self._known[id_]
            for id_, machine in self._known.items():
                if id_ not in listed and id_ not in self._ended:
                    self._missed.setdefault(id_, (machine, asked_s))
            self._known = dict(listed)
            buying = set(self._in_flight)
        # Written outside the lock: a storage root may be slow.
        unseen = self.books.settle(listed, buying)
        with self._lock:
            for machine in unseen:
                self._missed.setdefault(machine.id, (machine, asked_s))
            taken = self._taken_back(listed, asked_s)
        for machine, at_s in taken:
            self._write_taken(machine, at_s)
        return list(listed.values())

    def _taken_back(
        self, listed: Mapping[str, Machine], now_s: float
    ) -> list[tuple[Machine, float]]:
        """What nobody ended and no listing has had for a while, with when it was first missed."""
        for id_ in [i for i in self._missed if i in listed or i in self._ended]:
            del self._missed[id_]
        gone = [i for i, (_, at_s) in self._missed.items() if now_s - at_s >= MISSED_S]
        return [self._missed.pop(i) for i in gone]

    def _write_taken(self, machine: Machine, at_s: float) -> None:
        """The cloud (or a person at its console) ended it; only spot is interrupted."""
        why = "no longer listed, and not ended by this cluster"
        if self.books.unseen(machine.id) is not None:
            # It went while no head looked. Nobody knows why; when, only if its agent wrote it down.
            why = "gone when this head came up"
            noticed_s = self.books.interrupted_s(machine.id)
            at_s = at_s if noticed_s is None else noticed_s
        elif machine.market == "spot" and machine.id not in self._to_end:
            self.books.interrupted(machine, why, at_s)
        self.note(machine.tags.get(POOL_TAG, "head"), "taken back", f"{machine.id}: {why}")
        self.books.ended(machine, why, at_s)

    def known(self, id_: str) -> Machine | None:
        with self._lock:
            return self._known.get(id_)

    def retag(self, id_: str, tags: Mapping[str, str]) -> None:
        self._try(lambda: self.cloud.tag([id_], tags))
        with self._lock:
            if id_ in self._known:
                old = self._known[id_]
                self._known[id_] = replace(old, tags={**old.tags, **tags})

    def view(self) -> View:
        """What a decision may know, with the nodes that are being bought this moment."""
        with self._lock:
            nodes = [
                node_of(m) for m in self._known.values() if m.tags.get(POOL_TAG, "head") != "head"
            ]
            # A machine may be listed before its launch call has returned: it counts once.
            born = Counter(m.tags.get(TOKEN_TAG) for m in self._known.values())
            for token, pending in self._in_flight.items():
                nodes += pending[born[token] :]
            now_s = self.clock.now_s()
            wanted = frozenset(n for n in self.waiting if now_s - self.waited_s[n] <= WANTED_S)
            return View(
                now_s, tuple(nodes), dict(self.cooldowns), self.budget_usd_hour,
                self.head_usd_hour, wanted,
            )  # fmt: skip

    # Buying.

    def buy(self, request: Request) -> list[Machine]:
        """At least one machine, or a CapacityError; fewer than asked for where the ladder ends."""
        got: list[Machine] = []
        tried: set[str] = set()
        while len(got) < request.count:
            with self._lock:
                view = self.view()
                if not request.in_budget:
                    view = replace(view, budget_usd_hour=None)
                decision = decide.next_launch(request.pool, view, request.count - len(got), tried)
                if isinstance(decision, Wait):
                    self.waiting[request.pool.name] = decision
                    self.waited_s[request.pool.name] = self.clock.now_s()
                    self.note(request.pool.name, decision.state, decision.why)
                    break
                token = uuid.uuid4().hex
                self._in_flight[token] = _pending(decision, token, request.pool, self.clock.now_s())
            try:
                machines = self._launch(request, decision, token)
            except CapacityError as error:
                self._hold(request.pool, error)
                if not got:
                    raise
                break
            finally:
                with self._lock:
                    self._in_flight.pop(token, None)
            if machines:
                got += machines
            else:
                tried.add(decision.offer.key)
        if not got:
            raise NothingToBuy(decision if isinstance(decision, Wait) else _empty(request.pool))
        with self._lock:
            if len(got) >= request.count:
                self.waiting.pop(request.pool.name, None)
        return got

    def _hold(self, pool: PoolPlan, error: CapacityError) -> None:
        """Nothing is asked for this pool until the error had time to pass; `status` says why."""
        what = HOLDS.get(type(error), "cloud-away")
        reason = f"{error.message}; {error.fix}" if error.fix else error.message
        with self._lock:
            now_s = self.clock.now_s()
            self.cooldowns = decide.cool_pool(self.cooldowns, pool.name, what, now_s, reason)
            held = self.cooldowns[decide.POOL_KEY + pool.name]
            self.waiting[pool.name] = decide.hold(pool, held, now_s)
            self.waited_s[pool.name] = now_s
        self.note(pool.name, what, reason)

    def _launch(self, request: Request, decision: Launch, token: str) -> list[Machine]:
        """The machines of one rung; [] when it refused. Raises what no other rung would cure."""
        order = self._order(request, decision, token)
        offer = decision.offer
        try:
            machines = self._once(order)
        except tuple(REFUSALS) as error:
            with self._lock:
                self.cooldowns = decide.cool(
                    self.cooldowns, offer, REFUSALS[type(error)], self.clock.now_s(), error.message
                )
            self.note(request.pool.name, "refused", f"{offer}: {error.message}")
            return []
        with self._lock:
            self.cooldowns = decide.recovered(self.cooldowns, offer, request.pool.name)
            for m in machines:
                self._known[m.id] = m
                self._unlisted[m.id] = self.clock.now_s()
        self.note(request.pool.name, "launched", f"{len(machines)} × {offer}: {decision.why}")
        for m in machines:
            self.books.launched(m, offer.usd_hour, decision.why)
        return machines

    def _once(self, order: Order) -> list[Machine]:
        """One purchase, whatever becomes of the calls: a call that failed without a clear answer

        may have bought, so look before calling again, and always with the same token.
        """
        error: Transient | None = None
        for attempt in range(TRANSIENT_TRIES):
            if attempt:
                self.clock.sleep(TRANSIENT_PAUSE_S * 2 ** (attempt - 1))
                try:
                    already = self.cloud.bought(order.token)
                    if already:
                        return already
                except Transient:
                    continue
            try:
                return self.cloud.launch(order)
            except Transient as failed:
                error = failed
        try:
            already = self.cloud.bought(order.token)
        except Transient:
            already = []
        if already:
            return already
        # If it bought after all, the tags it was born with bring it into the next listing, where
        # the autoscaler takes it over as one of its own.
        raise error or Transient("the cloud does not answer")

    def _order(self, request: Request, decision: Launch, token: str) -> Order:
        offer = decision.offer
        price = offer.ceiling_usd_hour
        tags = {
            **request.tags, POOL_TAG: request.pool.name, MARKET_TAG: offer.market,
            ZONE_TAG: offer.zone, TOKEN_TAG: token, WHY_TAG: decision.why[:250],
        }  # fmt: skip
        if price is not None:
            tags[PRICE_TAG] = f"{price:.6f}"
            if offer.priced_on is not None:
                tags[PRICE_DAY_TAG] = offer.priced_on.isoformat()
        return Order(
            offer.market, offer.zone, offer.shape, decision.count, token, tags, request.config,
            request.pool.max_price_usd_hour if offer.market == "spot" else None, request.efa,
        )  # fmt: skip

    # Giving back.

    def give_back(self, ids: list[str]) -> None:
        """Terminate; an id that is already gone is fine. Raises Transient when the cloud is away."""
        if not ids:
            return
        self._to_end.update(ids)  # whatever becomes of the call, their end is ours
        self._try(lambda: self.cloud.terminate(ids))
        with self._lock:
            gone = [self._known.pop(i, None) or self.books.unseen(i) for i in ids]
            self._ended.update(ids)
            for i in ids:
                self._unlisted.pop(i, None)
        for machine in gone:
            if machine is not None:
                self.books.ended(machine)

    def _try(self, call: Any) -> None:
        """An idempotent call, again on transient errors."""
        for attempt in range(TRANSIENT_TRIES):
            try:
                call()
                return
            except Transient:
                if attempt == TRANSIENT_TRIES - 1:
                    raise
                self.clock.sleep(TRANSIENT_PAUSE_S * 2**attempt)

    # Prices.

    def reprice(self, machine: Machine, usd_hour: float) -> None:
        """From now on this machine costs this: on its tags, for the budget, and in the ledger."""
        today = datetime.fromtimestamp(self.clock.now_s(), UTC).date().isoformat()
        self.retag(machine.id, {PRICE_TAG: f"{usd_hour:.6f}", PRICE_DAY_TAG: today})
        self.books.repriced(with_price(machine, usd_hour))

    # Telling.

    def note(self, pool: str, what: str, why: str) -> None:
        with self._lock:
            self.decisions.append(
                {"at_s": self.clock.now_s(), "pool": pool, "what": what, "why": why}
            )
            del self.decisions[:-KEPT_DECISIONS]


def _pending(decision: Launch, token: str, pool: PoolPlan, now_s: float) -> list[Node]:
    offer = decision.offer
    return [
        Node(f"{token}-{i}", pool.name, offer.market, offer.zone, offer.shape,
             offer.ceiling_usd_hour, now_s)
        for i in range(decision.count)
    ]  # fmt: skip


def _empty(pool: PoolPlan) -> Wait:
    return Wait("no-offer", f"pool {pool.name}: nothing was asked for")
