"""What a gateway saw since it last told control: counts per version that add up over gateways.

Counts and forgets nothing that control has not taken. It judges nothing: rollouts and scaling do.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

from sundog.serving.rollout_facts import latency_bucket

MAX_DIFFERENCES = 20
MAX_SCORES = 10_000
MAX_CLASSES = 64


class ArmCounts:
    """Requests of one version: answers and 5xx, never the caller's own 4xx.

    `half`: (errors, requests) of about half of them: by their sticky key, else every other one.
    """

    __slots__ = ("answers", "errors", "feedback", "half", "latency", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.half = (0, 0)
        self.latency: dict[int, int] = {}
        self.answers: dict[int, int] = {}
        self.feedback: list[tuple[float, float]] = []

    def note(self, seconds: float, failed: bool, key: str = "") -> None:
        self.requests += 1
        if (crc32(key.encode()) if key else self.requests) & 1:
            self.half = (self.half[0] + failed, self.half[1] + 1)
        if failed:
            self.errors += 1
        else:
            bucket = latency_bucket(seconds)
            self.latency[bucket] = self.latency.get(bucket, 0) + 1

    def add(self, other: ArmCounts) -> None:
        self.requests += other.requests
        self.errors += other.errors
        self.half = (self.half[0] + other.half[0], self.half[1] + other.half[1])
        for mine, theirs in ((self.latency, other.latency), (self.answers, other.answers)):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count
        self.feedback = (self.feedback + other.feedback)[:MAX_SCORES]


class ServiceCounts:
    """One service: `arms` by version, mirrored pairs, and how their answers compare."""

    __slots__ = ("arms", "differ", "differences", "dropped", "itself", "mirrored")

    def __init__(self) -> None:
        self.arms: dict[str, ArmCounts] = {}
        self.mirrored: dict[str, ArmCounts] = {}
        self.differ = (0, 0)
        self.itself = (0, 0)
        self.differences: list[dict[str, Any]] = []
        self.dropped = 0

    def arm(self, version: str) -> ArmCounts:
        found = self.arms.get(version)
        if found is None:
            found = self.arms[version] = ArmCounts()
        return found

    def mirror(self, version: str) -> ArmCounts:
        return self.mirrored.setdefault(version, ArmCounts())

    def compared(self, differs: bool, itself: bool = False) -> None:
        hits, of = self.itself if itself else self.differ
        now = (hits + differs, of + 1)
        if itself:
            self.itself = now
        else:
            self.differ = now

    def add(self, other: ServiceCounts) -> None:
        for mine, theirs in ((self.arms, other.arms), (self.mirrored, other.mirrored)):
            for version, counts in theirs.items():
                mine.setdefault(version, ArmCounts()).add(counts)
        self.differ = (self.differ[0] + other.differ[0], self.differ[1] + other.differ[1])
        self.itself = (self.itself[0] + other.itself[0], self.itself[1] + other.itself[1])
        self.differences = (self.differences + other.differences)[-MAX_DIFFERENCES:]
        self.dropped += other.dropped


class Observer:
    """One a gateway. `take` hands over what was counted; `put_back` when control did not get it."""

    def __init__(self) -> None:
        self._services: dict[str, ServiceCounts] = {}

    def service(self, name: str) -> ServiceCounts:
        found = self._services.get(name)
        if found is None:
            found = self._services[name] = ServiceCounts()
        return found

    def note(self, service: str, version: str, status: int, seconds: float, key: str = "") -> None:
        """One request that a version was chosen for has ended. `key`: what it sticks by."""
        if version and (status == 200 or status >= 500):
            self.service(service).arm(version).note(seconds, status != 200, key)

    def answered(self, service: str, version: str, label: int | None) -> None:
        """The class that an answer fell into."""
        if label is not None:
            answers = self.service(service).arm(version).answers
            answers[label] = answers.get(label, 0) + 1

    def scored(self, service: str, version: str, age_s: float, score: float) -> None:
        feedback = self.service(service).arm(version).feedback
        if len(feedback) < MAX_SCORES:
            feedback.append((age_s, score))

    def take(self) -> dict[str, ServiceCounts]:
        taken, self._services = self._services, {}
        return taken

    def put_back(self, taken: dict[str, ServiceCounts]) -> None:
        for name, counts in taken.items():
            counts.add(self.service(name))
            self._services[name] = counts
