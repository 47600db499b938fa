"""How many workers a run shall have now: shrink at once, grow when the newcomer is warm and it pays.

Pure: a snapshot in, a decision with its reason out. Production and the simulator call the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """What is known between two steps. Workers are counted, times are in seconds."""

    working: int  # alive and in the group
    lost: int  # of the group, gone since it formed
    leaving: int  # of the group, under a preemption notice
    warm: int  # outside of the group, ready to join
    warming: int  # outside of the group, starting
    low: int
    high: int
    grow_pause_s: float  # how long all stand still when somebody joins
    left_s: float = math.inf  # how long the run goes on, as far as known
    next_warm_s: float = math.inf  # when the next of `warming` will be ready, as far as known


@dataclass(frozen=True)
class Resize:
    """`what`: keep, shrink, grow or wait; `workers` is the size to have; `why` says so."""

    what: str
    workers: int
    why: str


def decide(now: Snapshot) -> Resize:
    """The size for the next step."""
    stay = now.working - now.leaving
    reachable = min(now.high, stay + now.warm)
    if now.lost or now.leaving:
        if reachable < now.low:
            return Resize(
                "wait", now.low, f"{reachable} workers are left, the run needs at least {now.low}"
            )
        gone = f"{now.lost} lost" if now.lost else f"{now.leaving} under notice"
        return Resize("shrink", reachable, f"{gone}: the others go on, {reachable} of them")
    if now.working < now.low:
        if reachable >= now.low:
            return Resize(
                "grow", reachable, f"{reachable} workers are ready, at least {now.low} needed"
            )
        return Resize("wait", now.low, f"waiting for {now.low - reachable} more workers")
    gained = reachable - now.working
    if gained <= 0:
        return Resize("keep", now.working, "nobody is waiting to join")
    if gained * now.left_s <= reachable * now.grow_pause_s:
        return Resize("keep", now.working, "the run ends before a pause to grow would pay")
    if now.warming and now.next_warm_s * gained < now.working * now.grow_pause_s:
        return Resize("keep", now.working, "another worker is nearly warm: one pause for both")
    return Resize("grow", reachable, f"{gained} warm workers join")
