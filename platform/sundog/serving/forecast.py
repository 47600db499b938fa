"""What demand may be once a replica that starts now is ready, and how wrong that was before.

Carries the significant slope over the start-up time, trusts each slope as far as earlier ones came
true, and remembers jumps that no slope announced. Pure; knows nothing of replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sundog.serving.demand import Bin, slope_slots_s

JUMP_MEMORY_S = 1800.0
_JUMP_APART_S = 60.0
_TRUST_WEIGHT = 2.0
_TRUST_STEP = 0.1
_MOST_JUMPS = 64
_STOPPED = 0.1


@dataclass(frozen=True)
class Guess:
    """What was expected at `at_s` for one start-up time later; `margin` is what the replicas asked
    for then had to spare beyond it, in slots.
    """

    at_s: float
    demand: float
    rises: tuple[float, ...]
    expected: float
    margin: float


@dataclass(frozen=True)
class Forecaster:
    """History of guesses, the trust in each slope as (realised, promised), jumps as (at, slots),
    and the highest demand of each half minute as (at, slots).
    """

    guesses: tuple[Guess, ...] = ()
    trust: tuple[tuple[float, float], ...] = ((_TRUST_WEIGHT, _TRUST_WEIGHT),) * 2
    jumps: tuple[tuple[float, float], ...] = ()
    peaks: tuple[tuple[float, float], ...] = ()


def slope_windows_s(startup_s: float) -> tuple[float, float]:
    """A short window that sees a rise early and a longer one that is surer of it."""
    return (min(max(startup_s / 2, 20.0), 60.0), min(max(startup_s, 40.0), 120.0))


def expect(
    state: Forecaster, bins: tuple[Bin, ...], demand: float, service_s: float, startup_s: float
) -> tuple[float, tuple[float, ...]]:
    """(slots expected in `startup_s`, the rise that each window promises)."""
    rises = tuple(
        max(0.0, slope_slots_s(bins, window_s, service_s)) * startup_s
        for window_s in slope_windows_s(startup_s)
    )
    trusted = [
        rise * min(1.0, realised / promised)
        for rise, (realised, promised) in zip(rises, state.trust, strict=True)
    ]
    return demand + max(trusted), rises


def is_surprise(state: Forecaster, demand: float) -> bool:
    """Is the demand beyond the oldest standing guess by more than its margin allows for?"""
    if not state.guesses:
        return False
    old = state.guesses[0]
    return demand - old.expected > old.margin


def has_risen(state: Forecaster, demand: float) -> bool:
    """Is the demand above what it was a start-up time ago by more than chance or drift?"""
    return bool(state.guesses) and demand > state.guesses[0].demand + state.guesses[0].margin


def learn(
    state: Forecaster, guess: Guess, startup_s: float, warm_s: float, announced: bool
) -> Forecaster:
    """Holds older guesses against the demand of now. Guesses made before `warm_s` saw too little
    history for a jump; what stopped altogether since then is a jump all the same. `announced`: the
    calendar expects an onset about now, so that no jump is a surprise.
    """
    now_s, demand = guess.at_s, guess.demand
    guesses = (*state.guesses, guess)
    due = 0
    while due < len(guesses) and guesses[due].at_s <= now_s - startup_s - 2.0 + 1e-9:
        due += 1
    state = replace(state, guesses=guesses[due:], peaks=_peaks(state.peaks, now_s, demand))
    for old in guesses[:due]:
        seasoned = old.at_s >= warm_s
        if seasoned:
            state = replace(state, trust=_trust(state.trust, old, demand))
        surprise = demand - old.expected
        if not (seasoned and surprise > old.margin):
            surprise = old.demand if demand < _STOPPED * old.demand else 0.0
        if surprise > 0.0 and not announced:
            state = replace(state, jumps=_jumps(state.jumps, now_s, surprise))
    fresh = tuple(jump for jump in state.jumps if jump[0] >= now_s - JUMP_MEMORY_S)
    return replace(state, jumps=fresh)


def reserve_slots(state: Forecaster, demand: float) -> float:
    """Slots to have ready for a jump like those of the last half hour, 0 if there was none.

    The largest jump on top of the demand of now, or the highest demand seen, whichever is less,
    and more the fewer were seen: what n jumps say of the next is as sure as the root of n.
    """
    if not state.jumps:
        return 0.0
    largest = max(size for _, size in state.jumps)
    highest = max((size for _, size in state.peaks), default=0.0)
    carried = 1.0 + 1.0 / math.sqrt(len(state.jumps))
    return min(demand + carried * largest, carried * highest)


def _trust(
    trust: tuple[tuple[float, float], ...], old: Guess, demand: float
) -> tuple[tuple[float, float], ...]:
    """Realised against promised rises, relative to the demand then; large promises weigh more."""
    base = max(old.demand, 1.0)
    realised = max((demand - old.demand) / base, 0.0)
    updated = []
    for promised, (kept, asked) in zip((rise / base for rise in old.rises), trust, strict=True):
        if promised > 0.0:
            fade = 1.0 - min(_TRUST_STEP * promised, 0.5)
            kept = kept * fade + _TRUST_STEP * _TRUST_WEIGHT * min(realised, promised)
            asked = asked * fade + _TRUST_STEP * _TRUST_WEIGHT * promised
        updated.append((kept, asked))
    return tuple(updated)


def _jumps(
    jumps: tuple[tuple[float, float], ...], now_s: float, size: float
) -> tuple[tuple[float, float], ...]:
    """One jump lasts while surprises follow within a minute; its size is the largest of them."""
    if jumps and now_s - jumps[-1][0] < _JUMP_APART_S:
        return (*jumps[:-1], (now_s, max(size, jumps[-1][1])))
    return (*jumps, (now_s, size))[-_MOST_JUMPS:]


def _peaks(
    peaks: tuple[tuple[float, float], ...], now_s: float, demand: float
) -> tuple[tuple[float, float], ...]:
    if peaks and now_s - peaks[-1][0] < 30.0:
        at_s, highest = peaks[-1]
        return (*peaks[:-1], (at_s, max(highest, demand)))
    kept = tuple(peak for peak in peaks if peak[0] >= now_s - JUMP_MEMORY_S)
    return (*kept, (now_s, demand))
