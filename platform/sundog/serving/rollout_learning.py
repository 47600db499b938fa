"""What a rollout learns from each minute: both versions' counts into evidence, each minute once. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from sundog.serving.evidence import Counts, Evidence, RateEvidence, pairs
from sundog.serving.rollout_facts import Arm, Minute, Plan, Snapshot, State

_SLOW = 0.05


def learned(plan: Plan, state: State, seen: Snapshot) -> State:
    """The state with the minutes that it has not counted yet."""
    for minute in seen.minutes:
        if minute.index > state.minute:
            state = _one_minute(plan, state, minute)
    return state


def _one_minute(plan: Plan, state: State, minute: Minute) -> State:
    return replace(
        _referenced(state, minute.baseline) if state.phase == "warming" else state,
        minute=minute.index,
        step_requests=state.step_requests + minute.candidate.requests,
        step_baseline=state.step_baseline + minute.baseline.requests,
        evidence=_added(plan, state, minute),
    )


def _referenced(state: State, baseline: Arm) -> State:
    """With one more minute of the baseline before any change: what blue/green is held against."""
    return replace(
        state,
        reference=_summed(state.reference, baseline.latency),
        reference_counts=state.reference_counts + baseline.counts,
    )


def _summed(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0))


def _p95_bucket(histogram: Sequence[int]) -> int:
    """The bucket whose upper end splits off about 5%, as near as whole buckets allow.

    Taken from both arms together, minute by minute: given their pooled latencies, and if they come
    from one distribution, how many of the slow ones are the candidate's is hypergeometric. So no
    shock and no drift of the day has to be frozen out, and no power is lost to a threshold that
    was taken in a bad minute.
    """
    total = sum(histogram)
    above, best, where = total, math.inf, len(histogram) - 1
    for i, count in enumerate(histogram):
        above -= count
        if above <= 0:
            break
        if above <= total / 2 and (far := abs(math.log(above / total / _SLOW))) < best:
            best, where = far, i
    return where


def _slow(histogram: Sequence[int], slow_from: int) -> Counts:
    return Counts(sum(histogram[slow_from + 1 :]), sum(histogram))


def _alone(plan: Plan, state: State, new: Arm) -> RateEvidence:
    """Errors of a minute in which only the candidate had requests.

    After a blue/green's switch that is how it should be. In a canary it happens when nobody asks the
    running version: what that one answered before can show harm then, not that the candidate is as good.
    """
    errors = state.evidence.errors
    if state.acting == "switched":
        return errors.add_alone(state.reference_counts, new.counts, plan.error_floor)
    reference = state.reference_counts + errors.baseline
    return replace(errors.add_alone(reference, new.counts, plan.error_floor), safe=errors.safe)


def _added(plan: Plan, state: State, minute: Minute) -> Evidence:
    old, base, new = state.evidence, minute.baseline, minute.candidate
    alone = bool(new.requests) and not base.requests
    errors, latency = old.errors, old.latency
    dispersion = old.dispersion.add(base.half, base.counts)
    if alone:
        errors = _alone(plan, state, new)
    elif new.requests:
        errors = errors.add(base.counts, new.counts, plan.error_floor, dispersion.factor)
    if new.latency and alone and state.reference and state.acting == "switched":
        at = _p95_bucket(state.reference)
        before, slow = _slow(state.reference, at), _slow(new.latency, at)
        latency = latency.add_alone(before, slow, plan.error_floor)
    elif new.latency and not alone:
        at = _p95_bucket(_summed(base.latency, new.latency))
        before, slow = _slow(base.latency, at), _slow(new.latency, at)
        latency = latency.add(before, slow, plan.error_floor)
    feedback = old.feedback
    for age in sorted(set(base.feedback) & set(new.feedback)):
        feedback = feedback.add(pairs(base.feedback[age], new.feedback[age]))
    differ = old.differ
    if minute.differ.of:
        differ = differ.add(minute.itself, minute.differ, min(0.5, max(1e-3, plan.differ)))
    shift = old.shift.add(base.answers, new.answers) if base.answers and new.answers else old.shift
    return Evidence(errors, latency, differ, shift, feedback, dispersion)
