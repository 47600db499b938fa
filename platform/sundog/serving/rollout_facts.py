"""What a rollout knows and says: its plan, what each minute showed, its state, its decision.

Responsible for the shapes, their JSON (format 1) and nothing else; `rollout` decides.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sundog.errors import FormatTooNew
from sundog.serving.evidence import (
    NO_COUNTS,
    NO_EVIDENCE,
    Counts,
    DifferEvidence,
    Dispersion,
    Evidence,
    QualityEvidence,
    RateEvidence,
    ShiftEvidence,
)
from sundog.spec.service import Rollout

FORMAT = 1

LATENCY_BOUNDS_S = tuple(0.0005 * 1.1**i for i in range(148))
"""Upper bounds of the latency buckets, 0.5 ms to about 10 min in steps of 10%, and one beyond."""

Strategy = Literal["all-at-once", "canary", "blue-green", "ab", "shadow"]
Phase = Literal[
    "warming", "shadowing", "stepping", "comparing", "switched", "cleared", "inconclusive",
    "paused", "promoted", "rolled-back", "aborted",
]  # fmt: skip
Command = Literal["pause", "resume", "promote", "abort"]
ENDED: frozenset[Phase] = frozenset({"promoted", "rolled-back", "aborted"})


def latency_bucket(latency_s: float) -> int:
    """Index into a histogram of `len(LATENCY_BOUNDS_S) + 1` buckets."""
    return bisect_left(LATENCY_BOUNDS_S, latency_s)


@dataclass(frozen=True)
class Plan:
    """What was asked for. Durations in seconds, shares in 0..1."""

    baseline: str
    candidate: str
    strategy: Strategy = "canary"
    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5)
    step_s: float = 120.0
    patience_s: float = 3600.0
    guards: tuple[str, ...] = ("errors", "latency")
    false_alarms: float = 0.05
    shown_at: float = 20.0
    min_requests: int = 50
    share: float = 0.5
    error_floor: float = 0.0005
    differ: float = 0.02
    standby_s: float = 3600.0

    @classmethod
    def of(cls, spec: Rollout, baseline: str, candidate: str) -> Plan:
        """The plan of a service spec's `rollout:` for going from `baseline` to `candidate`."""
        return cls(
            baseline, candidate, spec.strategy, spec.steps or cls.steps,
            step_s=spec.every, patience_s=spec.patience, guards=spec.guards,
            share=spec.share, differ=spec.differ, standby_s=spec.standby,
            error_floor=spec.floor, min_requests=spec.requests,
        )  # fmt: skip

    @property
    def harm_at(self) -> float:
        """Evidence at which a guard rolls back: the guards share the chance of a false alarm."""
        return max(1, len(self.guards)) / self.false_alarms


@dataclass(frozen=True)
class Arm:
    """One version's minute. `errors` are answers 5xx and timeouts, not the caller's own 4xx.

    `latency`: requests per bucket of LATENCY_BOUNDS_S. `answers`: answers per class or bin.
    `feedback`: age in minutes -> scores in 0..1 that came in during this minute for requests that
    old. `half`: about half of the requests, drawn as a version's are: by key where a split is
    sticky, every other one where it is not.
    """

    requests: int = 0
    errors: int = 0
    latency: tuple[int, ...] = ()
    answers: tuple[int, ...] = ()
    feedback: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    half: Counts = NO_COUNTS

    @property
    def counts(self) -> Counts:
        return Counts(self.errors, self.requests)


@dataclass(frozen=True)
class Minute:
    """What one whole minute showed, added over all gateways. `index` grows with time.

    `differ`: mirrored requests whose candidate's answer differed; `itself`: the baseline asked
    twice.
    """

    index: int
    baseline: Arm = Arm()
    candidate: Arm = Arm()
    differ: Counts = NO_COUNTS
    itself: Counts = NO_COUNTS


@dataclass(frozen=True)
class Health:
    """The candidate's replicas now; `recent` counts its answers of the last few seconds.

    `restarts`: of the last minutes, without those whose node went; `restarts_baseline`: what as
    many replicas of the baseline had.
    """

    ready: bool = True
    baseline_ready: bool = True
    restarts: int = 0
    restarts_baseline: float = 0.0
    failed: str = ""
    recent: Counts = NO_COUNTS
    recent_baseline: Counts = NO_COUNTS


@dataclass(frozen=True)
class Snapshot:
    """All that a decision may look at. `minutes`: whole ones, in order; seen ones are skipped."""

    now_s: float
    minutes: tuple[Minute, ...] = ()
    health: Health = Health()
    command: Command | None = None
    by: str = ""


@dataclass(frozen=True)
class State:
    """Where a rollout is. Everything a restarted controller needs to go on."""

    phase: Phase = "warming"
    step: int = 0
    since_s: float = 0.0
    started_s: float = 0.0
    minute: int = -1
    resume_to: Phase = "warming"
    reason: str = ""
    reference: tuple[int, ...] = ()
    reference_counts: Counts = NO_COUNTS
    step_requests: int = 0
    step_baseline: int = 0
    """Requests of the candidate and of the baseline in this step."""
    evidence: Evidence = NO_EVIDENCE

    @property
    def acting(self) -> Phase:
        """The phase whose traffic holds: a pause or a doubt leaves traffic where it was."""
        return self.resume_to if self.phase in ("paused", "inconclusive") else self.phase

    def moved(self, phase: Phase, reason: str, now_s: float, step: int | None = None) -> State:
        return replace(
            self, phase=phase, reason=reason, since_s=now_s, step_requests=0, step_baseline=0,
            step=self.step if step is None else step,
        )  # fmt: skip

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> State:
        """The state that `to_json` wrote. Raises FormatTooNew for a later Sundog's."""
        raw = json.loads(text)
        if raw.pop("format") > FORMAT:
            raise FormatTooNew(
                "this rollout was written by a later Sundog",
                "finish it with that version, or abort it there",
            )
        raw["reference"] = tuple(raw["reference"])
        raw["reference_counts"] = Counts(**raw["reference_counts"])
        raw["evidence"] = _evidence(raw["evidence"])
        return cls(**raw)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _rate(raw: dict[str, Any]) -> RateEvidence:
    plain = {k: _tuples(v) for k, v in raw.items() if k not in ("baseline", "candidate")}
    return RateEvidence(Counts(**raw["baseline"]), Counts(**raw["candidate"]), **plain)


def _evidence(raw: dict[str, Any]) -> Evidence:
    seen = raw.get("dispersion", {})
    return Evidence(
        errors=_rate(raw["errors"]),
        latency=_rate(raw["latency"]),
        differ=DifferEvidence(_rate(raw["differ"]["rate"]), _tuples(raw["differ"]["above"])),
        shift=ShiftEvidence(**{k: _tuples(v) for k, v in raw["shift"].items()}),
        feedback=QualityEvidence(**{k: _tuples(v) for k, v in raw["feedback"].items()}),
        dispersion=Dispersion(seen.get("squares", 0.0), seen.get("hits", 0.0)),
    )


@dataclass(frozen=True)
class Reading:
    """One guard as people see it: both rates, harm of its limit, and what is shown not to be."""

    guard: str
    baseline: float
    candidate: float
    requests: int
    harm: float
    harm_at: float
    factor: float
    shown: float
    shown_at: float

    @property
    def safe(self) -> bool:
        return self.shown >= self.shown_at

    @property
    def harmful(self) -> bool:
        return self.harm >= self.harm_at

    def __str__(self) -> str:
        word = "shown" if self.safe else "not shown yet"
        return (
            f"{self.guard} {self.candidate:.2%} / {self.baseline:.2%}, evidence of harm "
            f"{self.harm:.3g} (rolls back at {self.harm_at:g}), not worse than {self.factor:g}×: "
            f"{word} ({self.shown:.3g} of {self.shown_at:g})"
        )


@dataclass(frozen=True)
class Decision:
    """What shall be true now. `weights` (candidate first) sum to 1 and hold until the next one.

    `mirror`: share of requests also sent to the candidate, its answers compared and dropped.
    `standby`: versions to keep warm without traffic. `state` is to be stored before acting.
    """

    weights: dict[str, float]
    mirror: float
    standby: tuple[str, ...]
    phase: Phase
    step: int
    reason: str
    evidence: tuple[Reading, ...]
    state: State

    @property
    def ended(self) -> bool:
        return self.phase in ENDED
