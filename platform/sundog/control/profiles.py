"""What a load test found of a model version on this hardware, and what follows from it.

Measures through the gateway as callers do; the profile lies beside the version in the registry.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from sundog.clock import Clock
from sundog.control.drills import ask, loader, replicas_of
from sundog.errors import NotFound, ServiceError
from sundog.serving.open_load import Load
from sundog.storage.documents import decode, encode
from sundog.storage.root import Root

KEPT_BUSY = 0.7
"""How much of the knee's rate a proposal gives a replica: the rest is for chance."""
GROWTH = 1.4
_FULL = 0.9


@dataclass(frozen=True)
class Point:
    """One rate of the rising load."""

    rate: float
    answered: float
    p50_s: float
    p95_s: float
    p99_s: float
    failed: int

    @property
    def holds(self) -> bool:
        """Whether the service kept up: all answered, and at the rate that was asked."""
        return not self.failed and self.answered >= 0.95 * self.rate


@dataclass(frozen=True)
class ServiceProfile:
    """`service_s`: one call of the model with one row; `batches`: rows -> seconds a call;
    `knee_rate`: the highest rate that `replicas` kept up with, in the latency limit."""

    model: str
    version: int
    replicas: int
    service_s: float
    knee_rate: float
    limit_s: float
    startup_s: float | None
    batches: Mapping[int, float]
    points: Sequence[Point] = field(default_factory=tuple)
    machine: str = ""
    at_s: float = 0.0

    @property
    def rate_a_replica(self) -> float:
        return self.knee_rate / max(1, self.replicas)

    def document(self) -> dict[str, Any]:
        batches = {str(rows): seconds for rows, seconds in self.batches.items()}
        return {**asdict(self), "batches": batches}


def key_of(model: str, version: int) -> str:
    return f"models/{model}/{version}/profile.json"


def keep(root: Root, profile: ServiceProfile) -> None:
    root.write(key_of(profile.model, profile.version), encode(profile.document()))


def kept(root: Root, model: str, version: int) -> dict[str, Any] | None:
    """The document of a version's profile; None where nobody made one."""
    key = key_of(model, version)
    try:
        return decode(root.read(key), key)
    except NotFound:
        return None


def measure(
    gateway: str,
    row: Mapping[str, Any],
    *,
    limit_s: float | None,
    start_rate: float,
    most_rate: float,
    step_s: float,
    clock: Clock,
    machine: str,
    key: str | None = None,
) -> ServiceProfile:
    """Drive a service with a rising load until it no longer keeps up. `row`: control's listing."""
    service = str(row["service"])
    points, stats = asyncio.run(
        _rise(gateway, service, limit_s, start_rate, most_rate, step_s, key)
    )
    batches = batch_curve(stats)
    if not points or not points[0].holds:
        raise ServiceError(
            f"{service} does not keep up with {start_rate:g} requests a second",
            "start lower: --from 1; or see its replicas' logs",
        )
    limit = limit_s if limit_s is not None else 5 * points[0].p50_s
    good = [p for p in points if p.holds and p.p99_s <= limit] or points[:1]
    service_s = batches.get(1) or min(batches.values(), default=points[0].p50_s)
    return ServiceProfile(
        str(row["model"]).partition("@")[0], int(row["version"]),
        replicas_of(gateway, service, key), service_s, max(p.answered for p in good), limit,
        row.get("startup_s"), batches, tuple(points), machine, clock.now_s(),
    )  # fmt: skip


async def _rise(
    gateway: str,
    service: str,
    limit_s: float | None,
    start_rate: float,
    most_rate: float,
    step_s: float,
    key: str | None,
) -> tuple[list[Point], dict[str, Any]]:
    load = loader(gateway, service, key)
    stats_at = f"/v2/models/{quote(service, safe='')}/stats"
    before = ask(gateway, stats_at, key)
    points: list[Point] = []
    rate = start_rate
    await load.run(start_rate, 1.0)
    while rate <= most_rate:
        point = _point(await load.run(rate, step_s))
        points.append(point)
        over = limit_s is not None and point.p99_s > 2 * limit_s
        if not point.holds or over:
            break
        rate *= GROWTH
    load.close()
    return points, difference(ask(gateway, stats_at, key), before)


def _point(load: Load) -> Point:
    return Point(
        load.rate, load.answered_rate, load.quantile_s(0.5), load.quantile_s(0.95),
        load.quantile_s(0.99), load.failed,
    )  # fmt: skip


def difference(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """rows of a call -> [calls, ns] between two answers of the protocol's statistics."""

    def calls(document: Mapping[str, Any]) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for version in document["model_stats"]:
            for batch in version["batch_stats"]:
                entry = found.setdefault(int(batch["batch_size"]), [0, 0])
                entry[0] += batch["compute_infer"]["count"]
                entry[1] += batch["compute_infer"]["ns"]
        return found

    old, new = calls(before), calls(after)
    return {
        str(rows): [n - old.get(rows, [0, 0])[0], ns - old.get(rows, [0, 0])[1]]
        for rows, (n, ns) in new.items()
    }


def batch_curve(calls: Mapping[str, Sequence[float]]) -> dict[int, float]:
    """rows -> mean seconds of a call, for sizes seen a few times."""
    return {
        int(rows): ns / n / 1e9
        for rows, (n, ns) in sorted(calls.items(), key=lambda one: int(one[0]))
        if n >= 3
    }


@dataclass(frozen=True)
class Proposal:
    replicas: int
    batch: int
    replica_hours_day: float
    why: str


def propose(profile: ServiceProfile, rate: float, limit_s: float | None) -> Proposal:
    """Replicas and batch size for a rate within a latency limit. ServiceError where none can."""
    if limit_s is not None and profile.service_s > limit_s:
        raise ServiceError(
            f"{profile.model}@{profile.version} takes {profile.service_s * 1000:.3g} ms even on an "
            f"idle replica: no number of replicas meets {limit_s * 1000:.3g} ms",
            "ask for more time, a smaller model, or faster hardware",
        )
    each = KEPT_BUSY * profile.rate_a_replica
    replicas = max(1, math.ceil(rate / each)) if each > 0 else 1
    batch = best_batch(profile.batches, limit_s)
    why = (
        f"{rate:g}/s at {each:.4g}/s a replica, {KEPT_BUSY:.0%} of the "
        f"{profile.rate_a_replica:.4g}/s it kept up with"
    )
    return Proposal(replicas, batch, 24.0 * replicas, why)


def best_batch(batches: Mapping[int, float], limit_s: float | None) -> int:
    """The smallest number of rows with nine tenths of the best throughput, within the limit."""
    fit = {r: s for r, s in batches.items() if limit_s is None or s <= limit_s / 2} or {1: 1.0}
    best = max(rows / seconds for rows, seconds in fit.items())
    return min(rows for rows, seconds in fit.items() if rows / seconds >= _FULL * best)
