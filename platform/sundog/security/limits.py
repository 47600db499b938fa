"""What one gateway lets a key do: its part of the rate, its leases of the day's quotas.

Decides from memory; what it may use it learns from control (leases.py), which it tells what was used.
While control is away it goes on with its part of what was left.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sundog.clock import WALL
from sundog.security.authoriser import Headers, Refusal
from sundog.security.leases import first_lease

DAY_S = 86400
AWAY_S = 3.0
"""Control has been silent for so long: the reserve is used."""
FREE_REPEATS = 3
"""How often a request id may come again within a minute without counting."""
_GENERATION_S = 30.0
_MAX_IDS = 20_000

KINDS = ("requests", "tokens")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a key is allowed: requests per second with bursts, and per day (UTC)."""

    key_id: str
    rate: float | None = None
    burst: float | None = None
    quota: int | None = None
    quota_tokens: int | None = None

    @property
    def limited(self) -> bool:
        return self.rate is not None or self.quota is not None or self.quota_tokens is not None

    @property
    def whole_burst(self) -> float:
        return self.burst if self.burst is not None else max(1.0, self.rate or 1.0)


class Bucket:
    """Tokens that refill at this gateway's part of a rate, up to its part of the burst."""

    __slots__ = ("at_s", "burst", "rate", "share", "tokens")

    def __init__(self, rate: float, burst: float, share: float, now_s: float) -> None:
        self.rate, self.burst, self.share = rate, burst, share
        self.tokens, self.at_s = self._most(), now_s

    def _most(self) -> float:
        # Below one token nothing would ever pass.
        return max(1.0, self.burst * self.share)

    def _fill(self, now_s: float) -> None:
        grown = self.tokens + (now_s - self.at_s) * self.rate * self.share
        self.tokens, self.at_s = min(self._most(), grown), now_s

    def give(self, share: float, now_s: float) -> None:
        self._fill(now_s)
        self.share = share
        self.tokens = min(self._most(), self.tokens)

    def take(self, now_s: float) -> float:
        """0 when a token was there, else the seconds until one is."""
        self._fill(now_s)
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return min((1 - self.tokens) / max(self.rate * self.share, 1e-9), 3600.0)


@dataclass(slots=True)
class _Meter:
    """One quota of a key here, today."""

    quota: int
    limit: int
    reserve: int
    left: int
    spent: int = 0
    asked: int = 0
    """since control was told"""
    low_at: int = 0
    """half of the lease is spent: ask for more"""


@dataclass(slots=True)
class _State:
    allowed: Allowed
    bucket: Bucket | None
    asked: int = 0
    meters: dict[str, _Meter] = field(default_factory=dict)
    fresh_ids: dict[int, None] = field(default_factory=dict)
    """Counted since control was told"""
    lost_ids: list[int] = field(default_factory=list)
    """Given back, of which control was told"""


class Limiter:
    """Of one gateway among `gateways`, all keys together."""

    def __init__(
        self,
        gateways: int = 1,
        now_s: Callable[[], float] = WALL.now_s,
        monotonic_s: Callable[[], float] = WALL.monotonic_s,
    ) -> None:
        self._gateways = gateways
        self._now_s = now_s
        self._monotonic_s = monotonic_s
        self._states: dict[str, _State] = {}
        self._day = self._today()
        self._heard_s = monotonic_s()
        self.on_low: Callable[[], None] = lambda: None
        """Called when a lease runs out, so that control is asked before the next report."""
        self._ids: dict[tuple[str, int], int] = {}
        self._older_ids: dict[tuple[str, int], int] = {}
        self._turned_s = self._heard_s

    def among(self, gateways: int) -> None:
        """There are so many now; what was given out stays, control evens it out."""
        self._gateways = gateways

    def _today(self) -> int:
        return int(self._now_s() // DAY_S)

    def update(self, allowed: Iterable[Allowed]) -> None:
        """Take over what keys may do; what is used of it stays used."""
        before, self._states = self._states, {}
        for each in allowed:
            if each.limited:
                old = before.get(each.key_id)
                same = old is not None and old.allowed == each
                self._states[each.key_id] = (
                    old if same and old is not None else self._new(each, old)
                )

    def _new(self, allowed: Allowed, old: _State | None = None) -> _State:
        bucket = None
        if allowed.rate is not None:
            part = old.bucket.share if old and old.bucket else 1.0 / self._gateways
            bucket = Bucket(allowed.rate, allowed.whole_burst, part, self._monotonic_s())
        state = _State(allowed, bucket, meters=self._meters(allowed))
        for kind, meter in state.meters.items():
            if old is not None and kind in old.meters:
                meter.spent = old.meters[kind].spent
                meter.limit += meter.spent
        return state

    def _meters(self, allowed: Allowed) -> dict[str, _Meter]:
        quotas = {"requests": allowed.quota, "tokens": allowed.quota_tokens}
        return {
            kind: _Meter(quota, first_lease(quota), quota // self._gateways, quota)
            for kind, quota in quotas.items()
            if quota is not None
        }

    # -- in the request's path

    def take(self, key_id: str, headers: Headers) -> Refusal | bool:
        """Count one request of a key: whether it went off a quota of requests, or, beyond a limit,
        why it may not and when to come back."""
        state = self._states.get(key_id)
        if state is None:
            return False
        self._turn_day()
        number = _id_of(headers) if "requests" in state.meters else None
        repeated = number is not None and self._is_repeat(key_id, number)
        for kind, meter in state.meters.items():
            if kind == "requests" and not repeated:
                meter.asked += 1
            if not repeated and meter.spent >= self._limit(meter):
                meter.asked += kind == "tokens"  # else nobody would know that some are wanted
                return self._spent(key_id, kind, meter)
        if state.bucket is not None:
            state.asked += 1
            wait_s = state.bucket.take(self._monotonic_s())
            if wait_s > 0:
                rate = state.allowed.rate
                why = f"key {key_id} may ask {rate:g} times a second"
                return Refusal(429, why, wait_s, key_id)
        if repeated or "requests" not in state.meters:
            return False
        meter = state.meters["requests"]
        meter.spent += 1
        if meter.spent == meter.low_at:
            self.on_low()
        if number is not None:
            self._remember(state, number)
        return True

    def _limit(self, meter: _Meter) -> int:
        away = self._monotonic_s() - self._heard_s > AWAY_S
        return max(meter.limit, meter.reserve) if away else meter.limit

    def _spent(self, key_id: str, kind: str, meter: _Meter) -> Refusal:
        if meter.left > 0 and meter.spent < meter.quota:
            self.on_low()
            return Refusal(429, f"key {key_id} has few of today's {kind} left", 1.0, key_id)
        wait_s = DAY_S - self._now_s() % DAY_S
        why = f"key {key_id} has used its {meter.quota} {kind} of today (UTC)"
        return Refusal(429, why, math.ceil(wait_s), key_id)

    def give_back(self, key_id: str, headers: Headers) -> None:
        """A request that `take` counted got no answer through no fault of the caller: it does not
        count. Its id is forgotten, so that the answer to a second try does."""
        state = self._states.get(key_id)
        meter = state.meters.get("requests") if state is not None else None
        if state is None or meter is None:
            return
        meter.spent = max(0, meter.spent - 1)
        number = _id_of(headers)
        if number is None:
            return
        self._ids.pop((key_id, number), None)
        self._older_ids.pop((key_id, number), None)
        if number in state.fresh_ids:
            del state.fresh_ids[number]
        elif len(state.lost_ids) < _MAX_IDS:
            state.lost_ids.append(number)

    def tokens(self, key_id: str, count: int) -> None:
        """Tokens are known after the answer: the request that crosses the line is the last one."""
        state = self._states.get(key_id)
        meter = state.meters.get("tokens") if state is not None else None
        if meter is not None:
            meter.spent += count
            meter.asked += count

    def _turn_day(self) -> None:
        today = self._today()
        if today != self._day:
            self._day = today
            for state in self._states.values():
                state.meters = self._meters(state.allowed)

    # -- request ids

    def _is_repeat(self, key_id: str, number: int) -> bool:
        self._turn_ids()
        for known in (self._ids, self._older_ids):
            times = known.get((key_id, number))
            if times is not None and times < FREE_REPEATS:
                known[key_id, number] = times + 1
                return True
        return False

    def _turn_ids(self) -> None:
        now_s = self._monotonic_s()
        age_s = now_s - self._turned_s
        if age_s > _GENERATION_S or len(self._ids) >= 5 * _MAX_IDS:
            self._older_ids = self._ids if age_s <= 2 * _GENERATION_S else {}
            self._ids, self._turned_s = {}, now_s

    def _remember(self, state: _State, number: int) -> None:
        # Counted again, since its free repeats are used: it has no more of them.
        key = state.allowed.key_id, number
        self._ids[key] = FREE_REPEATS if key in self._ids or key in self._older_ids else 0
        if len(state.fresh_ids) < _MAX_IDS:
            state.fresh_ids[number] = None

    # -- with control

    @property
    def active(self) -> bool:
        """Whether any key is limited, so that control has to be told."""
        return bool(self._states)

    def usage(self) -> dict[str, Any]:
        """{day, keys: {key_id: {asked, share, ids, lost_ids, requests: [spent, limit, asked],
        tokens: …}}}."""
        self._turn_day()
        keys = {}
        for key_id, state in self._states.items():
            told: dict[str, Any] = {
                "asked": state.asked, "ids": list(state.fresh_ids), "lost_ids": state.lost_ids,
            }  # fmt: skip
            state.asked, state.fresh_ids, state.lost_ids = 0, {}, []
            if state.bucket is not None:
                told["share"] = state.bucket.share
            for kind, meter in state.meters.items():
                told[kind] = [meter.spent, meter.limit, meter.asked]
                meter.asked = 0
            keys[key_id] = told
        return {"day": self._day, "keys": keys}

    def apply(self, grants: Mapping[str, Any]) -> None:
        """Control's answer: {day, keys: {key_id: {share, requests: [limit, reserve, left], …}}}."""
        self._heard_s = now_s = self._monotonic_s()
        for key_id, grant in grants["keys"].items():
            state = self._states.get(key_id)
            if state is None:
                continue
            if state.bucket is not None and "share" in grant:
                state.bucket.give(grant["share"], now_s)
            for kind in KINDS:
                meter = state.meters.get(kind)
                if meter is not None and kind in grant and grants["day"] == self._day:
                    meter.limit, meter.reserve, meter.left = grant[kind]
                    meter.low_at = (meter.spent + meter.limit + 1) // 2


def _id_of(headers: Headers) -> int | None:
    """The caller's own request id as a number; None where there is none."""
    for name, value in headers:
        if name == b"x-request-id":
            return int.from_bytes(hashlib.blake2b(value[:128], digest_size=8).digest(), "big")
    return None
