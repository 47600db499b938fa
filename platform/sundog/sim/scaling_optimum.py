"""The least bill that any schedule of replicas could have had, told the whole future.

Bounds every policy that starts each request (after the first 180 s) within the wait allowed, under
the same bounds on replicas. Exact dynamic program over time, replicas and backlog; no solver.

Formulation. D(t) is the work, in slot-seconds, that the judged requests would have received by t
had each started on arrival: D(t) = sum min(s, (t - a)+). P(t) is the work they receive. If every
request starts at most W late, then for all t

    D(t - W) <= P(t) <= D(t)        and        P(t + dt) - P(t) <= slots * dt * r(t),

with r(t) ready replicas, constant within a tick dt. Any integer r that allows such a P is a
schedule of the relaxation; it is a relaxation since requests become a fluid. The bill of a tick is
dt * r, and c(t) for every replica added, c(t) = min(start-up time, t): the start-up is billed, but
only what of it falls after the time left out. Removing is free, replicas at the beginning are too.
All of this favours the schedule, never a policy.

The backlog q = D - P is held on a grid. For the lower bound D(t) rounds up and D(t - W) down, for
the upper bound the other way round; the roundings are of cumulative work, so they do not add up,
and the two bounds meet as the grid gets finer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sundog.sim.replicas import Setting
from sundog.sim.traces import Floats, Trace

_CELLS = 250


@dataclass(frozen=True)
class Optimum:
    """Replica-seconds: no schedule costs less than `lower`; one that costs `upper` exists in the
    fluid. `unit_slot_s` is the grid they were computed on.
    """

    lower: float
    upper: float
    unit_slot_s: float


def optimum(
    trace: Trace, setting: Setting | None = None, unit_slot_s: float | None = None
) -> Optimum:
    """Both bounds. Without `unit_slot_s` the grid has at most about 250 steps of backlog."""
    setting = setting or Setting()
    if unit_slot_s is None:
        unit_slot_s = _grid(trace, setting)
    lower, upper = (_least_bill(trace, setting, unit_slot_s, tight) for tight in (False, True))
    return Optimum(lower, upper, unit_slot_s)


def work_by(trace: Trace, setting: Setting, at_s: Floats) -> Floats:
    """D(t): slot-seconds of the judged requests by each of `at_s`, were nobody to wait."""
    judged = trace.arrival_s >= setting.left_out_s
    arrived = trace.arrival_s[judged]
    done = np.sort(arrived + trace.service_s[judged])
    sums = [np.concatenate([[0.0], np.cumsum(times)]) for times in (arrived, done)]
    counts = [np.searchsorted(times, at_s, side="right") for times in (arrived, done)]
    return (counts[0] * at_s - sums[0][counts[0]]) - (counts[1] * at_s - sums[1][counts[1]])


def _ticks(trace: Trace, setting: Setting) -> Floats:
    first = math.ceil(setting.left_out_s / setting.tick_s)
    last = math.ceil(trace.duration_s / setting.tick_s)
    return np.arange(first, max(last, first) + 1, dtype=np.float64) * setting.tick_s


def _grid(trace: Trace, setting: Setting) -> float:
    at_s = _ticks(trace, setting)
    due = work_by(trace, setting, at_s - setting.wait_slo_s)
    largest = float((work_by(trace, setting, at_s) - due).max(initial=0.0))
    per_replica = setting.slots * setting.tick_s
    # A whole number of units to a replica's tick, so that capacity needs no rounding.
    return per_replica / max(1, math.floor(per_replica * _CELLS / max(largest, per_replica)))


def _least_bill(trace: Trace, setting: Setting, unit: float, tight: bool) -> float:
    at_s = _ticks(trace, setting)
    come = work_by(trace, setting, at_s) / unit
    due = work_by(trace, setting, at_s - setting.wait_slo_s) / unit
    up = [np.ceil(work - 1e-9).astype(np.int64) for work in (come, due)]
    down = [np.floor(work + 1e-9).astype(np.int64) for work in (come, due)]
    come_units, due_units = (down[0], np.minimum(up[1], down[0])) if tight else (up[0], down[1])
    return _program(np.diff(come_units), (come_units - due_units)[1:], at_s[:-1], setting, unit)


def _program(
    come: NDArray[np.int64],
    allowed: NDArray[np.int64],
    at_s: Floats,
    setting: Setting,
    unit: float,
) -> float:
    """Forward over ticks; bill[r, q] is the least so far with r replicas and a backlog of q."""
    per_replica = round(setting.slots * setting.tick_s / unit)
    most = max(math.ceil(int(come.max(initial=0)) / per_replica) + 1, setting.min_replicas)
    most = min(most, max(setting.max_replicas, 1))
    replicas = np.arange(most + 1, dtype=np.float64)[:, None]
    bill = np.full((most + 1, int(allowed.max(initial=0)) + 1), np.inf)
    bill[setting.min_replicas :, 0] = 0.0
    for arriving, limit, now_s in zip(come.tolist(), allowed.tolist(), at_s.tolist(), strict=True):
        start = min(setting.startup_s, now_s)
        fewer = np.minimum.accumulate(bill[::-1], axis=0)[::-1]
        bill = np.minimum.accumulate(fewer - replicas * start, axis=0) + replicas * start
        bill += setting.tick_s * replicas
        bill[: setting.min_replicas] = np.inf
        bill = _serve(bill, arriving, limit, per_replica)
    return float(bill.min())


def _serve(bill: Floats, arriving: int, limit: int, per_replica: int) -> Floats:
    """The backlog moves by what arrives less what r replicas can do; above `limit` is too late."""
    after = np.full_like(bill, np.inf)
    width = bill.shape[1]
    for count in range(bill.shape[0]):
        shift = arriving - per_replica * count
        if shift >= 0:
            fits = min(width, limit + 1) - shift
            if fits > 0:
                after[count, shift : shift + fits] = bill[count, :fits]
            continue
        after[count, 0] = bill[count, : 1 - shift].min()
        fits = min(width + shift, limit + 1)
        if fits > 1:
            after[count, 1:fits] = bill[count, 1 - shift : fits - shift]
    return after
