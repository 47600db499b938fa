"""Simulated rollouts: versions of known quality under traffic with shocks that both arms share.

Runs production's decider, and its peers, minute by minute. Refuses to know any policy's insides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sundog.serving.evidence import Counts
from sundog.serving.rollout import begin, decide
from sundog.serving.rollout_facts import (
    ENDED,
    LATENCY_BOUNDS_S,
    Arm,
    Decision,
    Health,
    Minute,
    Phase,
    Plan,
    Snapshot,
    State,
)

_LOG_BOUNDS = np.log(np.array(LATENCY_BOUNDS_S))


@dataclass(frozen=True)
class World:
    """A service under load. Shocks hit both versions alike; errors may come in clusters."""

    requests_min: float = 1200.0
    error_rate: float = 0.01
    median_s: float = 0.040
    sigma: float = 0.5
    error_swing: float = 0.3
    latency_swing: float = 0.1
    incident_chance: float = 1 / 120
    feedback_share: float = 0.1
    feedback_delay_min: int = 3
    quality: float = 0.8
    noise: float = 0.009
    cluster: float = 1.0


@dataclass(frozen=True)
class Version:
    """How the candidate differs from the running version."""

    name: str
    good: bool
    error_ratio: float = 1.0
    latency_ratio: float = 1.0
    quality_drop: float = 0.0
    differ: float = 0.0
    crashes: bool = False


@dataclass(frozen=True)
class Outcome:
    """How one rollout went. `exposed`: candidate's share of all requests of the first hour."""

    phase: Phase
    minutes: int
    exposed: float
    reason: str


class Policy(Protocol):
    """Who decides: told of each minute, says the candidate's weight and where the rollout is."""

    weight: float
    mirror: float
    phase: Phase
    reason: str

    def see(self, minute: Minute, health: Health, now_s: float) -> None: ...


class Ours:
    """Production's decider, its state through JSON and back each minute as a controller's is."""

    def __init__(self, plan: Plan, through_json: bool = False) -> None:
        self.plan = plan
        self._state = begin(plan, 0.0)
        self._through_json = through_json
        self.decision: Decision | None = None
        self._take(decide(plan, self._state, Snapshot(0.0, health=Health(ready=False))))

    def _take(self, decision: Decision) -> None:
        self.decision, self._state = decision, decision.state
        self.weight = decision.weights[self.plan.candidate]
        self.mirror, self.phase, self.reason = decision.mirror, decision.phase, decision.reason

    def see(self, minute: Minute, health: Health, now_s: float) -> None:
        if self._through_json:
            self._state = State.from_json(self._state.to_json())
        self._take(decide(self.plan, self._state, Snapshot(now_s, (minute,), health)))


class Shocks:
    """What this minute does to everybody: (error factor, latency factor)."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world, self._rng = world, rng
        self._error, self._latency, self._left = 0.0, 0.0, 0

    def draw(self) -> tuple[float, float]:
        world, keep = self._world, 0.8
        fresh = math.sqrt(1 - keep**2)
        e, lat = self._rng.standard_normal(2)
        self._error = keep * self._error + fresh * world.error_swing * e
        self._latency = keep * self._latency + fresh * world.latency_swing * lat
        if self._left == 0 and self._rng.random() < world.incident_chance:
            self._left = int(self._rng.integers(3, 11))
        self._left = max(0, self._left - 1)
        worse = (8.0, 1.8) if self._left else (1.0, 1.0)
        return math.exp(self._error) * worse[0], math.exp(self._latency) * worse[1]


class Traffic:
    """One service's minutes under a given weight of the candidate."""

    def __init__(self, world: World, version: Version, rng: np.random.Generator) -> None:
        self.world, self.version, self._rng = world, version, rng
        self._shocks = Shocks(world, rng)
        self._owed: list[tuple[int, int, int]] = []

    def minute(self, index: int, weight: float, mirror: float) -> Minute:
        world, rng = self.world, self._rng
        errors, slower = self._shocks.draw()
        total = int(rng.poisson(world.requests_min))
        new = round(weight * total)
        seen = round(mirror * total) if weight == 0 else new
        better, worse = self._feedback(index, total - new, new)
        compared = round(mirror * total)
        base = self._arm(total - new, errors, slower, 1.0, 1.0, {world.feedback_delay_min: better})
        cand = self._arm(
            seen, errors, slower, self.version.error_ratio, self.version.latency_ratio,
            {world.feedback_delay_min: worse},
        )  # fmt: skip
        differs = min(1.0, world.noise + self.version.differ)
        return Minute(
            index, base, cand,
            Counts(int(rng.binomial(compared, differs)), compared),
            Counts(int(rng.binomial(compared, world.noise)), compared),
        )  # fmt: skip

    def _arm(
        self, num: int, errors: float, slower: float, error_ratio: float, latency_ratio: float,
        feedback: dict[int, tuple[float, ...]],
    ) -> Arm:  # fmt: skip
        world, rng = self.world, self._rng
        if num == 0:
            return Arm(feedback=feedback)
        rate = min(0.9, world.error_rate * errors * error_ratio)
        sizes = (num // 2, num - num // 2)
        halves = [min(size, self._failed(size, rate)) for size in sizes]
        failed = sum(halves)
        centre = math.log(world.median_s * slower * latency_ratio)
        logs = centre + world.sigma * rng.standard_normal(num)
        histogram: NDArray[np.int64] = np.bincount(
            np.searchsorted(_LOG_BOUNDS, logs), minlength=_LOG_BOUNDS.size + 1
        )
        return Arm(
            num, failed, tuple(histogram.tolist()), feedback=feedback,
            half=Counts(halves[0], sizes[0]),
        )  # fmt: skip

    def _failed(self, num: int, rate: float) -> int:
        """Errors of so many requests; a cluster stays on one side of every split."""
        cluster, rng = self.world.cluster, self._rng
        if cluster <= 1:
            return int(rng.binomial(num, rate))
        bursts = rng.poisson(num * rate / cluster)
        return int(rng.geometric(1 / cluster, bursts).sum())

    def _feedback(
        self, index: int, base: int, new: int
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        world, rng = self.world, self._rng
        self._owed.append((index, base, new))
        if self._owed[0][0] > index - world.feedback_delay_min:
            return (), ()
        _, then_base, then_new = self._owed.pop(0)
        shared = float(np.clip(world.quality + 0.03 * rng.standard_normal(), 0.05, 0.99))
        scores = []
        for num, level in ((then_base, shared), (then_new, shared - self.version.quality_drop)):
            judged = rng.binomial(num, world.feedback_share)
            right = rng.binomial(judged, max(0.0, level))
            order = rng.permutation(judged) < right
            scores.append(tuple(order.astype(float).tolist()))
        return scores[0], scores[1]


def run(world: World, version: Version, policy: Policy, seed: int, minutes: int = 180) -> Outcome:
    """One rollout until it ends or `minutes` pass; the first hour is counted in full."""
    rng = np.random.default_rng(seed)
    traffic = Traffic(world, version, rng)
    exposed = total = 0
    ended = 0
    for index in range(minutes):
        minute = traffic.minute(index, policy.weight, policy.mirror)
        if index < 60:
            total += minute.baseline.requests
            if policy.weight > 0:
                exposed += minute.candidate.requests
                total += minute.candidate.requests
        if policy.phase not in ENDED:
            crashed = version.crashes
            health = Health(ready=not crashed, restarts=index + 1 if crashed else 0)
            policy.see(minute, health, 60.0 * (index + 1))
            ended = index + 1
        elif index >= 60:
            break
    return Outcome(policy.phase, ended, exposed / max(1, total), policy.reason)
