"""How long an idle service keeps its last replica before it scales to zero.

Renting against buying: idling costs replica-seconds, a cold start costs what the profile says it is
worth. With no history it waits until idling has cost as much as a cold start (never more than twice
the best in hindsight); with history it takes the wait that would have been cheapest over it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_MOST_GAPS = 32
_ENOUGH_GAPS = 8
_SHORTEST_GAP_S = 10.0


@dataclass(frozen=True)
class Idle:
    """Since when nothing came (None while busy), and the idle gaps that ended, oldest first."""

    since_s: float | None = None
    gaps_s: tuple[float, ...] = ()


def observe(idle: Idle, now_s: float, busy: bool) -> Idle:
    if not busy:
        return idle if idle.since_s is not None else replace(idle, since_s=now_s)
    if idle.since_s is None:
        return idle
    gap_s = now_s - idle.since_s
    if gap_s < _SHORTEST_GAP_S:
        return replace(idle, since_s=None)
    return Idle(None, (*idle.gaps_s, gap_s)[-_MOST_GAPS:])


def keep_warm_s(idle: Idle, cold_start_worth_s: float) -> float:
    """Seconds to stay warm: the candidate with the least idling plus cold starts over the gaps."""
    if len(idle.gaps_s) < _ENOUGH_GAPS:
        return cold_start_worth_s
    candidates = (0.0, *(gap for gap in idle.gaps_s if gap <= cold_start_worth_s))

    def cost(wait_s: float) -> float:
        return sum(gap if gap <= wait_s else wait_s + cold_start_worth_s for gap in idle.gaps_s)

    # A gap as long as the longest survived one should still find it warm.
    return min(1.1 * min(candidates, key=cost), cold_start_worth_s)


def is_warm(idle: Idle, now_s: float, warm_s: float) -> bool:
    return idle.since_s is None or now_s - idle.since_s < warm_s


def idle_for_s(idle: Idle, now_s: float) -> float:
    return 0.0 if idle.since_s is None else now_s - idle.since_s
