"""Traffic as gateways report it, added up: intervals for rollouts, sums for scaling.

Keeps the last minutes in memory only: decisions and what they rest on are in the store.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sundog.clock import Clock
from sundog.serving.evidence import Counts
from sundog.serving.observe import ArmCounts, ServiceCounts
from sundog.serving.rollout_facts import LATENCY_BOUNDS_S, Arm, Minute

KEEP_S = 180.0
RECENT_S = 10.0
GATEWAY_GONE_S = 5.0

Lanes = Mapping[str, Mapping[str, Mapping[str, float]]]
"""service -> version -> totals and present numbers, as one gateway reports them."""


@dataclass
class LaneSums:
    """A version's traffic since it was last asked for, and what is there now, over all gateways."""

    arrivals: int = 0
    completions: int = 0
    busy_s: float = 0.0
    queued: int = 0
    running: int = 0


@dataclass
class _Gateway:
    at_s: float
    lanes: Lanes = field(default_factory=dict)


class Counters:
    """Thread-safe: gateways report while the loop reads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._reports: dict[str, deque[tuple[float, ServiceCounts]]] = {}
        self._gateways: dict[str, _Gateway] = {}
        self._sums: dict[tuple[str, str], LaneSums] = {}
        self.started_s = clock.now_s()

    def report(self, gateway: str, counts: Mapping[str, ServiceCounts], lanes: Lanes) -> None:
        now_s = self._clock.now_s()
        with self._lock:
            for service, seen in counts.items():
                rows = self._reports.setdefault(service, deque())
                rows.append((now_s, seen))
                while rows and rows[0][0] < now_s - KEEP_S:
                    rows.popleft()
            before = self._gateways.get(gateway)
            if before is not None:
                self._grow(before.lanes, lanes)
            self._gateways[gateway] = _Gateway(now_s, lanes)
            # Kept for a while: one that only paused goes on counting from where it was.
            for name in [n for n, g in self._gateways.items() if now_s - g.at_s > KEEP_S]:
                del self._gateways[name]

    def _grow(self, before: Lanes, lanes: Lanes) -> None:
        for service, versions in lanes.items():
            for version, lane in versions.items():
                old = before.get(service, {}).get(version, {})
                sums = self._sums.setdefault((service, version), LaneSums())
                # A version that was routed anew counts from zero.
                fresh = lane["arrivals"] < old.get("arrivals", 0)
                past: Mapping[str, float] = {} if fresh else old
                sums.arrivals += int(lane["arrivals"] - past.get("arrivals", 0))
                sums.completions += int(lane["completions"] - past.get("completions", 0))
                sums.busy_s += max(0.0, lane["busy_s"] - past.get("busy_s", 0.0))

    def take_lane(self, service: str, version: str) -> LaneSums:
        """What came since the last call for this version."""
        now_s = self._clock.now_s()
        with self._lock:
            sums = self._sums.pop((service, version), LaneSums())
            for gateway in self._gateways.values():
                if now_s - gateway.at_s < GATEWAY_GONE_S:
                    lane = gateway.lanes.get(service, {}).get(version, {})
                    sums.queued += int(lane.get("queued", 0))
                    sums.running += int(lane.get("running", 0))
            return sums

    def waiting(self, service: str, version: str) -> int:
        """Requests that are held in gateways for this version now."""
        now_s = self._clock.now_s()
        with self._lock:
            live = [g for g in self._gateways.values() if now_s - g.at_s < GATEWAY_GONE_S]
            lanes = [g.lanes.get(service, {}).get(version, {}) for g in live]
            return sum(int(lane.get("queued", 0)) for lane in lanes)

    def reports(self, service: str) -> list[tuple[float, ServiceCounts]]:
        with self._lock:
            return list(self._reports.get(service, ()))

    def is_heard(self) -> bool:
        """Whether any gateway has reported lately: without one, silence says nothing."""
        now_s = self._clock.now_s()
        with self._lock:
            return any(now_s - g.at_s < GATEWAY_GONE_S for g in self._gateways.values())


def minutes(
    reports: Iterable[tuple[float, ServiceCounts]],
    *,
    baseline: str,
    candidate: str,
    mirrored: bool,
    tick_s: float,
    after: int,
    now_s: float,
    from_s: float,
) -> tuple[Minute, ...]:
    """Whole intervals of `tick_s` with an index above `after`, oldest first, none before `from_s`.

    `mirrored`: the candidate only answers mirrored requests. Its latency is then compared with that
    of the same requests on the running version; its errors with those of all.
    """
    intervals: dict[int, ServiceCounts] = {}
    for at_s, counts in reports:
        index = int(at_s // tick_s)
        if at_s >= from_s and index > after and (index + 1) * tick_s <= now_s:
            intervals.setdefault(index, ServiceCounts()).add(counts)
    return tuple(
        _minute(index, counts, baseline, candidate, mirrored, tick_s)
        for index, counts in sorted(intervals.items())
    )


def _minute(
    index: int,
    counts: ServiceCounts,
    baseline: str,
    candidate: str,
    mirrored: bool,
    tick_s: float,
) -> Minute:
    arms = {v: counts.arms.get(v, ArmCounts()) for v in (baseline, candidate)}
    if mirrored:
        shown = {v: counts.mirrored.get(v, ArmCounts()) for v in (baseline, candidate)}
        base = _arm(arms[baseline], tick_s, _histogram(shown[baseline].latency))
        new = _arm(shown[candidate], tick_s)
    else:
        base, new = _arm(arms[baseline], tick_s), _arm(arms[candidate], tick_s)
    return Minute(index, base, new, Counts(*counts.differ), Counts(*counts.itself))


def _arm(counts: ArmCounts, tick_s: float, latency: tuple[int, ...] | None = None) -> Arm:
    feedback: dict[int, tuple[float, ...]] = {}
    for age_s, score in counts.feedback:
        age = int(age_s // tick_s)
        feedback[age] = (*feedback.get(age, ()), score)
    classes = max(counts.answers, default=-1) + 1
    return Arm(
        counts.requests,
        counts.errors,
        _histogram(counts.latency) if latency is None else latency,
        tuple(counts.answers.get(i, 0) for i in range(classes)),
        feedback,
        Counts(*counts.half),
    )


def _histogram(buckets: Mapping[int, int]) -> tuple[int, ...]:
    if not buckets:
        return ()
    return tuple(buckets.get(i, 0) for i in range(len(LATENCY_BOUNDS_S) + 1))


def recent(reports: Iterable[tuple[float, ServiceCounts]], version: str, now_s: float) -> Counts:
    """A version's answers of the last seconds; hits are errors."""
    arms = [c.arms[version] for at_s, c in reports if at_s > now_s - RECENT_S and version in c.arms]
    return Counts(sum(a.errors for a in arms), sum(a.requests for a in arms))


def differences(reports: Iterable[tuple[float, ServiceCounts]], after_s: float) -> list[Any]:
    """Mirrored answers that differed, reported after `after_s`."""
    return [d for at_s, c in reports if at_s > after_s for d in c.differences]
