"""Policies for the simulator: Sundog's own decider, and its peers' rules as they document them.

All see the same observations and none the future. The peers are re-implementations of the rule,
with the defaults named in each class; their control planes are not simulated.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from sundog.serving.scaling import Profile, Snapshot, State, decide
from sundog.sim.replicas import Observation, Policy, Setting


def profile_of(setting: Setting, service_s: float) -> Profile:
    """What a load test would have told: the service time to one significant digit."""
    return Profile(
        slots=setting.slots,
        startup_s=setting.startup_s,
        service_s=float(f"{service_s:.1g}"),
        wait_slo_s=setting.wait_slo_s,
        min_replicas=setting.min_replicas,
        max_replicas=setting.max_replicas,
    )


@dataclass
class Sundog:
    """The production decider."""

    profile: Profile
    state: State | None = None
    reason: str = ""

    def __call__(self, seen: Observation) -> int:
        snapshot = Snapshot(
            now_s=seen.now_s,
            ready=seen.ready,
            starting=seen.starting,
            queued=seen.queued,
            running=seen.running,
            arrivals=seen.arrivals,
            completions=seen.completions,
            completed_service_s=seen.completed_service_s,
            completed_service_sq_s2=seen.completed_service_sq_s2,
        )
        decision = decide(snapshot, self.state, self.profile)
        self.state, self.reason = decision.state, decision.reason
        return decision.count


@dataclass
class Recent:
    """A sum over the last `window_s` of values seen once a tick."""

    window_s: float
    kept: deque[tuple[float, float]] = field(default_factory=deque)
    total: float = 0.0

    def add(self, now_s: float, value: float) -> None:
        self.kept.append((now_s, value))
        self.total += value
        while self.kept[0][0] <= now_s - self.window_s + 1e-9:
            self.total -= self.kept.popleft()[1]

    @property
    def mean(self) -> float:
        return self.total / len(self.kept)


@dataclass
class RayServe:
    """Ray Serve 2.60: ongoing requests over `look_back_s`, divided by the target, held against two
    delays. Defaults: target 2, look-back 30 s, up after 30 s, down after 600 s.
    """

    target: float = 2.0
    look_back_s: float = 30.0
    up_delay_s: float = 30.0
    down_delay_s: float = 600.0
    least: int = 1
    ongoing: Recent = field(init=False)
    goal: int = 1
    since_s: float | None = None
    up: bool = False

    def __post_init__(self) -> None:
        self.ongoing = Recent(self.look_back_s)

    def __call__(self, seen: Observation) -> int:
        self.ongoing.add(seen.now_s, seen.queued + seen.running)
        desired = max(math.ceil(self.ongoing.mean / self.target - 1e-9), self.least)
        if desired == self.goal:
            self.since_s = None
            return self.goal
        up = desired > self.goal
        if self.since_s is None or up != self.up:
            self.since_s, self.up = seen.now_s, up
        if seen.now_s - self.since_s >= (self.up_delay_s if up else self.down_delay_s):
            self.goal, self.since_s = desired, None
        return self.goal


@dataclass
class Knative:
    """Knative's KPA: concurrency over 60 s at 70% of the slots; over 6 s when that asks for twice
    what is ready (panic), and then never down for 60 s.
    """

    slots: int
    least: int = 1
    stable: Recent = field(default_factory=lambda: Recent(60.0))
    short: Recent = field(default_factory=lambda: Recent(6.0))
    panic_until_s: float = -1.0
    panic_count: int = 0

    def __call__(self, seen: Observation) -> int:
        ongoing = seen.queued + seen.running
        self.stable.add(seen.now_s, ongoing)
        self.short.add(seen.now_s, ongoing)
        target = 0.7 * self.slots
        ready = max(seen.ready, 1)
        # At most ten times and at least half of what is ready, at a time.
        low, high = math.floor(ready / 2), 10 * ready
        stable, panic = (
            min(max(math.ceil(recent.mean / target - 1e-9), low), high)
            for recent in (self.stable, self.short)
        )
        if panic >= 2 * ready:
            if seen.now_s >= self.panic_until_s:
                self.panic_count = 0
            self.panic_until_s = seen.now_s + 60.0
        if seen.now_s < self.panic_until_s:
            self.panic_count = max(self.panic_count, panic, stable)
            return max(self.panic_count, self.least)
        return max(stable, self.least)


@dataclass
class Hpa:
    """Kubernetes' HPA at 70% utilisation: every 15 s, a tenth of tolerance, at most twice as many
    or four more at a time, down to the most of the last 300 s. Utilisation cannot pass 100%.
    """

    slots: int
    least: int = 1
    busy: Recent = field(default_factory=lambda: Recent(30.0))
    wanted: deque[tuple[float, int]] = field(default_factory=deque)
    next_s: float = 0.0
    goal: int = 1

    def __call__(self, seen: Observation) -> int:
        self.busy.add(seen.now_s, seen.running / max(seen.ready * self.slots, 1))
        if seen.now_s < self.next_s:
            return self.goal
        self.next_s = seen.now_s + 15.0
        ratio = min(self.busy.mean, 1.0) / 0.7
        there = seen.ready + seen.starting
        desired = there if abs(ratio - 1.0) <= 0.1 else math.ceil(seen.ready * ratio - 1e-9)
        desired = min(max(desired, self.least), max(2 * there, there + 4))
        self.wanted.append((seen.now_s, desired))
        while self.wanted[0][0] < seen.now_s - 300.0:
            self.wanted.popleft()
        highest = max(count for _, count in self.wanted)
        self.goal = max(desired, min(highest, there))
        return self.goal


@dataclass
class SkyServe:
    """SkyServe's request-rate autoscaler: requests of 60 s over a target rate a replica, every 20 s,
    up after 300 s and down after 1,200 s of asking. The target is 70% of what a replica can do.
    """

    target_rate_s: float
    least: int = 1
    rate: Recent = field(default_factory=lambda: Recent(60.0))
    next_s: float = 0.0
    goal: int = 1
    asked_up: int = 0
    asked_down: int = 0

    def __call__(self, seen: Observation) -> int:
        self.rate.add(seen.now_s, seen.arrivals)
        if seen.now_s < self.next_s:
            return self.goal
        self.next_s = seen.now_s + 20.0
        desired = max(math.ceil(self.rate.total / 60.0 / self.target_rate_s - 1e-9), self.least)
        self.asked_up = self.asked_up + 1 if desired > self.goal else 0
        self.asked_down = self.asked_down + 1 if desired < self.goal else 0
        if self.asked_up >= 300 // 20 or self.asked_down >= 1200 // 20:
            self.goal = desired
            self.asked_up = self.asked_down = 0
        return self.goal


@dataclass
class Fixed:
    """Always so many."""

    count: int

    def __call__(self, seen: Observation) -> int:
        return self.count


def policies(setting: Setting, service_s: float) -> dict[str, Policy]:
    """Fresh policies by name. `service_s` is the mean service time, which SkyServe's rate needs."""
    slots, least, there = setting.slots, setting.min_replicas, setting.initial
    return {
        "sundog": Sundog(profile_of(setting, service_s)),
        "ray_serve_default": RayServe(least=least, goal=there),
        "ray_serve_0.7": RayServe(
            target=0.7 * slots,
            look_back_s=10.0,
            up_delay_s=2.0,
            down_delay_s=60.0,
            least=least,
            goal=there,
        ),
        "knative_kpa": Knative(slots, least),
        "kubernetes_hpa": Hpa(slots, least, goal=there),
        "skyserve": SkyServe(0.7 * slots / max(service_s, 1e-6), least, goal=there),
    }
