"""The books of limited keys: what each gateway used today and holds, and what it may use next.

Gateways come with their usage, the pure rules (security/leases.py) answer; what was used is kept in
the store, so that a quota survives control.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sundog.clock import Clock
from sundog.security.keys import KeyRecord
from sundog.security.leases import Holding, Share, lease, share
from sundog.security.limits import DAY_S, FREE_REPEATS, KINDS
from sundog.store import Lease, Store

GATEWAY_GONE_S = 5.0
SETTLE_S = 3.0
"""A new control lets gateways go on with what they hold until all have told what that is."""
KEEP_S = 2.0
"""How often what was used is written down."""
_IDS_S = 30.0
_SNAPSHOT = "quotas"


@dataclass(slots=True)
class _Used:
    """One quota of one key today: by gateway, so that whoever comes back is not counted twice."""

    holdings: dict[str, Holding] = field(default_factory=dict)
    credit: int = 0

    @property
    def total(self) -> int:
        return sum(h.spent for h in self.holdings.values()) - self.credit


class Limits:
    """Thread-safe: gateways report while the loop writes down."""

    def __init__(self, store: Store, lease: Lease, clock: Clock) -> None:
        self._store = store
        self._lease = lease
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, KeyRecord] = {}
        self._heard_s: dict[str, float] = {}
        self._shares: dict[str, dict[str, Share]] = {}
        self._ids: list[dict[tuple[str, int], tuple[str, int]]] = [{}, {}]
        self._turned_s = self._started_s = self._kept_s = clock.monotonic_s()
        self._version, body = store.snapshot(_SNAPSHOT)
        self._day: int = body.get("day", 0)
        self._books = {
            (key_id, kind): _Used(
                {g: Holding(n, n, live=False) for g, n in used["gateways"].items()}, used["credit"]
            )
            for key_id, kinds in body.get("keys", {}).items()
            for kind, used in kinds.items()
        }
        self._kept: dict[str, Any] = body

    def update(self, records: Iterable[KeyRecord]) -> None:
        with self._lock:
            self._keys = {r.key_id: r for r in records if r.allowed.limited}

    def used(self, key_id: str) -> dict[str, int]:
        """{requests, tokens} of today, where the key has a quota of them."""
        with self._lock:
            self._turn()
            return {
                kind: self._books[key_id, kind].total
                for kind in KINDS
                if (key_id, kind) in self._books
            }

    def exchange(self, gateway: str, usage: Mapping[str, Any]) -> dict[str, Any]:
        """Take a gateway's usage (security/limits.py says how it looks), answer what it may use."""
        with self._lock:
            self._turn()
            now_s = self._clock.monotonic_s()
            since_s = max(0.1, now_s - self._heard_s.get(gateway, now_s - 0.5))
            self._heard_s[gateway] = now_s
            settling = now_s - self._started_s < SETTLE_S
            grants = {}
            for key_id, told in usage["keys"].items():
                record = self._keys.get(key_id)
                if record is not None:
                    self._count_repeats(key_id, gateway, told)
                    grant = self._grant(record, gateway, told, since_s, usage["day"] == self._day)
                    if not settling:
                        grants[key_id] = grant
                        self._note_granted(key_id, gateway, grant)
            return {"day": self._day, "keys": grants}

    def _grant(
        self, record: KeyRecord, gateway: str, told: Mapping[str, Any], since_s: float, today: bool
    ) -> dict[str, Any]:
        out: dict[str, Any] = {}
        key_id = record.key_id
        if record.rate is not None and "share" in told:
            shares = self._shares.setdefault(key_id, {})
            shares[gateway] = Share(told["share"], told["asked"] / since_s)
            for gone in [g for g in shares if not self._is_live(g)]:
                del shares[gone]
            out["share"] = share(shares, gateway)
        quotas = {"requests": record.quota, "tokens": record.quota_tokens}
        for kind, quota in quotas.items():
            if quota is not None and kind in told and today:
                spent, held, asked = told[kind]
                book = self._books.setdefault((key_id, kind), _Used())
                book.holdings[gateway] = Holding(spent, held, asked / since_s)
                for name, holding in list(book.holdings.items()):
                    if holding.live and not self._is_live(name):
                        book.holdings[name] = Holding(holding.spent, holding.spent, live=False)
                given = lease(quota, book.holdings, gateway, book.credit)
                out[kind] = [given.limit, given.reserve, given.left]
        return out

    def _note_granted(self, key_id: str, gateway: str, grant: Mapping[str, Any]) -> None:
        """Until it says otherwise, a gateway may use what it had or what it is given now."""
        if "share" in grant:
            old = self._shares[key_id][gateway]
            self._shares[key_id][gateway] = Share(max(old.held, grant["share"]), old.demand)
        for kind in KINDS:
            if kind in grant:
                book = self._books[key_id, kind].holdings
                old_one = book[gateway]
                held = max(old_one.held, grant[kind][0])
                book[gateway] = Holding(old_one.spent, held, old_one.demand)

    def _is_live(self, gateway: str) -> bool:
        return self._clock.monotonic_s() - self._heard_s.get(gateway, -1e9) < GATEWAY_GONE_S

    def _count_repeats(self, key_id: str, gateway: str, told: Mapping[str, Any]) -> None:
        """A request that another gateway has counted already is credited."""
        now_s = self._clock.monotonic_s()
        if now_s - self._turned_s > _IDS_S:
            self._ids, self._turned_s = [{}, self._ids[0]], now_s
        for number in told.get("lost_ids", ()):  # got no answer: the one to come counts
            for ids in self._ids:
                ids.pop((key_id, number), None)
        for number in told["ids"]:
            known = self._ids[0].get((key_id, number)) or self._ids[1].get((key_id, number))
            if known is None:
                self._ids[0][key_id, number] = (gateway, 0)
            elif known[0] != gateway and known[1] < FREE_REPEATS:
                self._ids[0][key_id, number] = (known[0], known[1] + 1)
                self._books.setdefault((key_id, "requests"), _Used()).credit += 1

    def _turn(self) -> None:
        today = int(self._clock.now_s() // DAY_S)
        if today != self._day:
            self._day, self._books = today, {}

    # -- kept over restarts

    def keep(self) -> None:
        """Write down what was used, if that is due. Raises LeaseLost, StorageUnavailable."""
        now_s = self._clock.monotonic_s()
        if now_s - self._kept_s < KEEP_S:
            return
        self._kept_s = now_s
        with self._lock:
            body = self._document()
        if body != self._kept:
            self._version += 1
            self._store.put_snapshot(self._lease, _SNAPSHOT, self._version, body)
            self._kept = body

    def _document(self) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for (key_id, kind), book in self._books.items():
            spent = {g: h.spent for g, h in book.holdings.items()}
            keys.setdefault(key_id, {})[kind] = {"gateways": spent, "credit": book.credit}
        return {"format": 1, "day": self._day, "keys": keys}
