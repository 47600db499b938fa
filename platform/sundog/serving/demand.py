"""How many slots the arrivals of the last minute ask for, and whether they rise.

Pure arithmetic on a short history of counts. Says nothing of replicas or bounds.

Demand is deadline-aware: N arrivals within a window of L seconds need `S N / (L + W + S)` slots if
the last of them may start W seconds after it came. The largest over all windows up to a minute
rises at once with a burst and does not mistake a second's noise for one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

WINDOW_S = 60.0
BIN_S = 2.0
# Completions that a mean of service times rests on: of the last two minutes, but at least so many.
_SERVICE_MEMORY_S = 120.0
_LEAST_WEIGHT = 2000.0
_PRIOR_WEIGHT = 200.0
# A slope counts only beyond this many standard errors.
_SLOPE_ERRORS = 2.0
_LEAST_BINS = 6

Bin = tuple[float, float]


@dataclass(frozen=True)
class ServiceTime:
    """A recent mean of service times and of their squares, starting from a prior."""

    weight: float
    total_s: float
    total_sq_s2: float

    @classmethod
    def prior(cls, mean_s: float) -> ServiceTime:
        # Exponential until seen otherwise: the second moment is twice the square of the mean.
        return cls(_PRIOR_WEIGHT, _PRIOR_WEIGHT * mean_s, _PRIOR_WEIGHT * 2.0 * mean_s**2)

    @property
    def mean_s(self) -> float:
        return self.total_s / self.weight

    @property
    def spread(self) -> float:
        """E[S^2] / E[S]^2: 1 when all take the same time, 2 when exponential."""
        return max(1.0, self.total_sq_s2 / self.weight / self.mean_s**2)

    def learn(
        self, count: int, total_s: float, total_sq_s2: float | None, rate_s: float = 0.0
    ) -> ServiceTime:
        """With `count` more completions, at `rate_s` requests a second; squares unknown: the
        spread seen so far is kept.
        """
        if count <= 0 or total_s <= 0.0:
            return self
        weight = self.weight + count
        if total_sq_s2 is None:
            # Of the new mean, not of these few: the square of a small sample's mean is too large
            # on average, and the spread would grow with every one.
            mean_s = (self.total_s + total_s) / weight
            total_sq_s2 = self.spread * mean_s**2 * weight - self.total_sq_s2
        keep = min(1.0, max(_LEAST_WEIGHT, _SERVICE_MEMORY_S * rate_s) / weight)
        return ServiceTime(
            weight * keep, (self.total_s + total_s) * keep, (self.total_sq_s2 + total_sq_s2) * keep
        )


def add_bin(bins: tuple[Bin, ...], seconds: float, arrivals: int, keep_s: float) -> tuple[Bin, ...]:
    """(seconds, arrivals), newest last. Short steps fill one bin of `BIN_S`; old bins fall off."""
    if bins and bins[-1][0] + seconds <= BIN_S + 1e-9:
        last_s, last_count = bins[-1]
        bins = (*bins[:-1], (last_s + seconds, last_count + arrivals))
    else:
        bins = (*bins, (seconds, float(arrivals)))
    total_s = sum(span for span, _ in bins)
    first = 0
    while first < len(bins) - 1 and total_s - bins[first][0] >= keep_s - 1e-9:
        total_s -= bins[first][0]
        first += 1
    return bins[first:]


def rate_s(bins: tuple[Bin, ...]) -> float:
    """Arrivals a second over all bins."""
    length_s = sum(span for span, _ in bins)
    return sum(count for _, count in bins) / length_s if length_s > 0.0 else 0.0


def demand_slots(bins: tuple[Bin, ...], service_s: float, wait_s: float) -> float:
    """Slots that the worst window of at most `WINDOW_S` needs to start everything in time."""
    arrived = length_s = most = 0.0
    for span_s, count in reversed(bins):
        arrived += count
        length_s += span_s
        most = max(most, service_s * arrived / (length_s + wait_s + service_s))
        if length_s >= WINDOW_S - 1e-9:
            break
    return most


def slope_slots_s(bins: tuple[Bin, ...], window_s: float, service_s: float) -> float:
    """Slots a second by which demand changes over `window_s`: the part of a straight line's slope
    that is beyond two standard errors (0 if none is). Noise is never taken below Poisson's.
    """
    spans: list[Bin] = []
    length_s = 0.0
    for one in reversed(bins):
        if length_s >= window_s - 1e-9:
            break
        spans.append(one)
        length_s += one[0]
    if len(spans) < _LEAST_BINS:
        return 0.0
    at_s = 0.0
    points = []
    for span_s, count in spans:
        points.append((at_s - span_s / 2, count / span_s))
        at_s -= span_s
    number = len(points)
    mean_t = sum(t for t, _ in points) / number
    mean_rate = sum(rate for _, rate in points) / number
    spread_t = sum((t - mean_t) ** 2 for t, _ in points)
    slope = sum((t - mean_t) * (rate - mean_rate) for t, rate in points) / spread_t
    left_over = sum((rate - mean_rate - slope * (t - mean_t)) ** 2 for t, rate in points)
    variance = max(left_over / (number - 2), mean_rate * number / length_s)
    sure = max(0.0, abs(slope) - _SLOPE_ERRORS * math.sqrt(variance / spread_t))
    return math.copysign(sure * service_s, slope)


def noise_slots(demand: float, service: ServiceTime, wait_s: float, deviations: float) -> float:
    """Room for chance alone: work that arrives at random within W + S seconds varies by
    sqrt(a E[S^2] / (E[S] (W + S))) slots around a demand of a, and never by more than Poisson.
    """
    smoothed = min(1.0, service.mean_s * service.spread / (wait_s + service.mean_s))
    return deviations * math.sqrt(max(demand, 0.0) * smoothed)


def forget(service: ServiceTime) -> ServiceTime:
    """The same mean with the weight of a prior: after a silence what is new counts more."""
    keep = min(1.0, _PRIOR_WEIGHT / service.weight)
    return replace(
        service,
        weight=service.weight * keep,
        total_s=service.total_s * keep,
        total_sq_s2=service.total_sq_s2 * keep,
    )
