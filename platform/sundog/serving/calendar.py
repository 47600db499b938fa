"""When demand jumped before what was there, and when it may do so again.

People and schedulers keep to half hours, days and weeks. An onset is remembered with its height
and expected again one period later, once for each period; if it comes it is remembered anew. Pure.
"""

from __future__ import annotations

PERIODS_S = (1800.0, 86_400.0, 604_800.0)
_APART_S = 240.0
_GROWS_S = 120.0
_EARLY_S = 30.0
_LATE_S = 60.0
_NEAR_S = 150.0
_CAME = 0.7
_MOST_ONSETS = 128

Onset = tuple[float, float]


def remember(
    onsets: tuple[Onset, ...], now_s: float, demand: float, overrun: bool, risen: bool
) -> tuple[Onset, ...]:
    """With the demand of now: a new onset when it overran what was ready unforeseen, or when one
    that was expected comes with a rise; within two minutes of an onset its height grows with the demand.
    """
    if onsets and now_s - onsets[-1][0] <= _GROWS_S:
        at_s, height = onsets[-1]
        return (*onsets[:-1], (at_s, max(height, demand)))
    if onsets and now_s - onsets[-1][0] <= _APART_S:
        return onsets
    came = risen and any(
        demand >= _CAME * height for _, height in _around(onsets, now_s, _NEAR_S, _NEAR_S)
    )
    if overrun or came:
        oldest_s = now_s - PERIODS_S[-1] - _NEAR_S
        kept = [onset for onset in onsets if onset[0] >= oldest_s]
        return (*kept, (now_s, demand))[-_MOST_ONSETS:]
    return onsets


def expected_slots(onsets: tuple[Onset, ...], now_s: float, startup_s: float) -> float:
    """The height of the onset that a replica started now would be ready for; 0 if none is due."""
    due = _around(onsets, now_s, startup_s + _EARLY_S, _LATE_S)
    return max((height for _, height in due), default=0.0)


def announced(onsets: tuple[Onset, ...], now_s: float) -> bool:
    """Is an onset due about now? Then a jump is no surprise."""
    return bool(_around(onsets, now_s, _NEAR_S, _NEAR_S))


def _around(
    onsets: tuple[Onset, ...], now_s: float, before_s: float, after_s: float
) -> list[Onset]:
    """Onsets whose recurrence lies at most `before_s` ahead or `after_s` back."""
    return [
        onset
        for onset in onsets
        if any(-before_s <= now_s - onset[0] - period_s <= after_s for period_s in PERIODS_S)
    ]
