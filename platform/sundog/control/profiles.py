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
from sundog.control.drills import loader, replicas_of
from sundog.errors import NotFound, ServiceError
from sundog.serving.asking import ask
from sundog.serving.open_load import Load
from sundog.storage.documents import decode, encode
from sundog.storage.root import Root

KEPT_BUSY = 0.7
"""How much of the knee's rate a proposal gives a replica: the rest is for chance."""
GROWTH = 1.4
_FULL = 0.9


@dataclass(frozen=True)
class Point:
    """One rate of the rising load. `replicas`: the most that were there before or after it."""

    rate: float
    answered: float
    p50_s: float
    p95_s: float
    p99_s: float
    failed: int
    replicas: int = 1

    @property
    def holds(self) -> bool:
        """Whether the service kept up: all answered, and at the rate that was asked."""
        return not self.failed and self.answered >= 0.95 * self.rate


@dataclass(frozen=True)
class ServiceProfile:
    """`service_s`: one call of the model with one row; `batches`: rows -> seconds a call;
    `knee_rate`: the highest rate that was kept up with, in the latency limit, and by `replicas`."""

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
    knee = knee_of(service, points, limit)
    service_s = batches.get(1) or min(batches.values(), default=points[0].p50_s)
    return ServiceProfile(
        str(row["model"]).partition("@")[0], int(row["version"]),
        knee.replicas, service_s, knee.answered, limit,
        row.get("startup_s"), batches, tuple(points), machine, clock.now_s(),
    )  # fmt: skip


def knee_of(service: str, points: Sequence[Point], limit_s: float) -> Point:
    """Where most was answered of what was kept up with in the limit. ServiceError where nothing was."""
    good = [p for p in points if p.holds and p.p99_s <= limit_s]
    if not good:
        first = points[0]
        raise ServiceError(
            f"{service} answers 99 of 100 within {1000 * first.p99_s:.3g} ms at {first.rate:g} requests "
            f"a second: no rate from there on meets {1000 * limit_s:.3g} ms",
            "start lower (--from 1), ask for more time, a smaller model, or faster hardware",
        )
    return max(good, key=lambda p: p.answered)


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
        had = replicas_of(gateway, service, key)
        ran = await load.run(rate, step_s)
        point = _point(ran, max(1, had, replicas_of(gateway, service, key)))
        points.append(point)
        over = limit_s is not None and point.p99_s > 2 * limit_s
        if not point.holds or over:
            break
        rate *= GROWTH
    load.close()
    return points, difference(ask(gateway, stats_at, key), before)


def _point(load: Load, replicas: int) -> Point:
    return Point(
        load.rate, load.answered_rate, load.quantile_s(0.5), load.quantile_s(0.95),
        load.quantile_s(0.99), load.failed, replicas,
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
    """`usd_day`: None where nobody said what an hour of a replica costs."""

    replicas: int
    batch: int
    replica_hours_day: float
    usd_day: float | None
    why: str


def check_limit(model: str, version: int, service_s: float, limit_s: float | None) -> None:
    """Raises ServiceError for a limit that an idle replica misses."""
    if limit_s is not None and service_s > limit_s:
        raise ServiceError(
            f"{model}@{version} takes {service_s * 1000:.3g} ms even on an idle replica: no number "
            f"of replicas meets {limit_s * 1000:.3g} ms",
            "ask for more time (slo), a smaller model, or faster hardware; on other hardware than "
            "its profile is from, deploy it without slo and run `sundog service profile` again",
        )


def propose(
    profile: ServiceProfile, rate: float, limit_s: float | None, usd_hour: float | None = None
) -> Proposal:
    """Replicas and batch size for a rate within a latency limit. ServiceError where none can."""
    check_limit(profile.model, profile.version, profile.service_s, limit_s)
    each = KEPT_BUSY * profile.rate_a_replica
    replicas = max(1, math.ceil(rate / each)) if each > 0 else 1
    batch = best_batch(profile.batches, limit_s)
    why = (
        f"{rate:g}/s at {each:.4g}/s a replica, {KEPT_BUSY:.0%} of the "
        f"{profile.rate_a_replica:.4g}/s it kept up with"
    )
    hours = 24.0 * replicas
    return Proposal(replicas, batch, hours, None if usd_hour is None else hours * usd_hour, why)


def best_batch(batches: Mapping[int, float], limit_s: float | None) -> int:
    """The smallest number of rows with nine tenths of the best throughput, within the limit."""
    fit = {r: s for r, s in batches.items() if limit_s is None or s <= limit_s / 2} or {1: 1.0}
    best = max(rows / seconds for rows, seconds in fit.items())
    return min(rows for rows, seconds in fit.items() if rows / seconds >= _FULL * best)
