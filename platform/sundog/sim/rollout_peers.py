"""How others judge a canary: fixed thresholds as Argo Rollouts and Flagger document them, peeking.

Responsible for policies beside ours in the simulator. Refuses to be used in production.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sundog.serving.evidence import Counts
from sundog.serving.rollout_facts import LATENCY_BOUNDS_S, Arm, Health, Minute, Phase


@dataclass
class Thresholds:
    """A metric over its threshold counts as a failure; so many failures abort.

    Flagger (docs.flagger.app, "Canary"): every minute, request-success-rate >= 99 and p99 <= 500
    ms, five failed checks in all, weight +10 up to 50. Argo Rollouts (argoproj.github.io,
    "Analysis"): success rate >= 0.95 measured every five minutes, failureLimit 3, weights 20..80.
    """

    name: str
    steps: tuple[float, ...]
    step_min: int
    interval_min: int
    min_success: float
    max_p99_s: float
    failures: int
    weight: float = 0.0
    mirror: float = 0.0
    phase: Phase = "stepping"
    reason: str = ""

    def __post_init__(self) -> None:
        self.weight = self.steps[0]
        self._seen, self._failed, self._clean = 0, 0, 0
        self._window: list[Arm] = []

    def see(self, minute: Minute, health: Health, now_s: float) -> None:
        if not health.ready:
            # A readiness probe keeps traffic away until the progress deadline (ten minutes).
            self.weight, self._seen = 0.0, self._seen + 1
            if self._seen >= 10:
                self.phase, self.reason = "rolled-back", "progress deadline"
            return
        self._seen += 1
        self._window.append(minute.candidate)
        if self._seen % self.interval_min == 0:
            self._check()
        if self.phase == "stepping" and self._seen % self.step_min == 0:
            self._step()

    def _check(self) -> None:
        num = sum(a.requests for a in self._window)
        wrong = sum(a.errors for a in self._window)
        bad = num > 0 and (
            1 - wrong / num < self.min_success or _quantile(self._window, 0.99) > self.max_p99_s
        )
        self._window = []
        self._failed += bad
        self._clean = 0 if bad else self._clean + 1
        if self._failed >= self.failures:
            self.phase, self.weight = "rolled-back", 0.0
            self.reason = f"{self._failed} failed checks"

    def _step(self) -> None:
        if self._clean == 0 and self._seen >= self.interval_min:
            return  # a failed check halts the advancement
        at = self.steps.index(self.weight)
        if at + 1 == len(self.steps):
            self.phase, self.weight = "promoted", 1.0
        else:
            self.weight = self.steps[at + 1]


def _quantile(arms: list[Arm], q: float) -> float:
    size = len(LATENCY_BOUNDS_S) + 1
    total = [sum(a.latency[i] for a in arms if a.latency) for i in range(size)]
    left = (1 - q) * sum(total)
    for i in reversed(range(size)):
        left -= total[i]
        if left < 0:
            return LATENCY_BOUNDS_S[min(i, size - 2)]
    return 0.0


def flagger(max_p99_s: float = 0.5, min_success: float = 0.99) -> Thresholds:
    return Thresholds(
        "Flagger", (0.1, 0.2, 0.3, 0.4, 0.5), 1, 1, min_success, max_p99_s, failures=5
    )


def argo(min_success: float = 0.95) -> Thresholds:
    return Thresholds("Argo", (0.2, 0.4, 0.6, 0.8), 5, 5, min_success, math.inf, failures=4)


@dataclass
class Peeking:
    """A one-sided two-proportion z-test at 5% on all data so far, looked at every minute."""

    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5)
    step_min: int = 5
    weight: float = 0.0
    mirror: float = 0.0
    phase: Phase = "stepping"
    reason: str = ""

    def __post_init__(self) -> None:
        self.weight = self.steps[0]
        self._seen = 0
        self._rates = [[Counts(), Counts()], [Counts(), Counts()]]

    def see(self, minute: Minute, health: Health, now_s: float) -> None:
        self._seen += 1
        if not health.ready:
            self.phase, self.weight = "rolled-back", 0.0
            return
        for rate, arms in zip(self._rates, self._minute(minute), strict=True):
            for i, counts in enumerate(arms):
                rate[i] = rate[i] + counts
        if any(_z(*rate) > 1.645 for rate in self._rates):
            self.phase, self.weight, self.reason = "rolled-back", 0.0, "p < 0.05"
        elif self._seen % self.step_min == 0:
            at = self.steps.index(self.weight)
            if at + 1 == len(self.steps):
                self.phase, self.weight = "promoted", 1.0
            else:
                self.weight = self.steps[at + 1]

    def _minute(self, minute: Minute) -> list[tuple[Counts, Counts]]:
        slow = 53  # the bucket near the p95 of the simulated service
        arms = (minute.baseline, minute.candidate)
        errors = [a.counts for a in arms]
        above = [Counts(sum(a.latency[slow:]), sum(a.latency)) for a in arms]
        return [(errors[0], errors[1]), (above[0], above[1])]


def _z(baseline: Counts, candidate: Counts) -> float:
    if not baseline.of or not candidate.of:
        return 0.0
    p = (baseline.hits + candidate.hits) / (baseline.of + candidate.of)
    spread = math.sqrt(max(1e-12, p * (1 - p) * (1 / baseline.of + 1 / candidate.of)))
    return (candidate.share - baseline.share) / spread
