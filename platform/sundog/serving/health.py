"""Which of a version's replicas are much slower or faultier than the others, and left out for a while.

Pure: told of answers and the time. Never leaves out more than half of the replicas: when all are slow,
that is how the model is.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

SLOWER, SLOWER_BY_S = 3.0, 0.02
"""Than the median of the others, and by so much: below it is the network's and the system's mood."""
LEAST = 5
"""Answers before a replica is judged by its speed."""
FAULTS = 5
"""Calls in a row that the model failed, where the others' last calls were good."""
FIRST_S, MOST_S = 1.0, 30.0
"""How long one is left out: twice as long each time it is no better."""
GOOD = 20
"""Answers in a row that make its past forgotten."""
_WEIGHT = 0.3


class Health:
    """Of one replica, as a gateway sees it. `seconds`: what a call takes, lately."""

    __slots__ = ("_good", "_pause_s", "answers", "faults", "seconds", "until_s")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.answers = 0
        self.faults = 0
        self.until_s = 0.0
        """It is left out until then."""
        self._pause_s = FIRST_S
        self._good = 0

    def out(self, now_s: float) -> bool:
        return now_s < self.until_s

    def answered(self, seconds: float) -> None:
        self.seconds += (seconds - self.seconds) * (_WEIGHT if self.seconds else 1.0)
        self.answers += 1
        self.faults = 0
        self._good += 1
        if self._good >= GOOD:
            self._pause_s = FIRST_S

    def failed(self) -> None:
        self.faults += 1
        self._good = 0

    def leave_out(self, now_s: float) -> float:
        """For how long. The first answer after that decides anew."""
        pause_s, self._pause_s = self._pause_s, min(MOST_S, 2 * self._pause_s)
        self.until_s = now_s + pause_s
        self.seconds, self.answers, self.faults, self._good = 0.0, LEAST - 1, FAULTS - 1, 0
        return pause_s


def why_out(mine: Health, others: Sequence[Health], now_s: float) -> str | None:
    """Why the replica should be left out, beside the `others` of its version; None: it should not."""
    here = [o for o in others if not o.out(now_s)]
    num_out = len(others) - len(here)
    if 2 * (num_out + 1) > len(others) + 1:
        return None
    if mine.faults >= FAULTS and not any(o.faults for o in here):
        return f"its last {FAULTS} calls failed, those of {len(here)} others did not"
    usual_s = _usual_s(here)
    if mine.answers < LEAST or usual_s is None:
        return None
    if mine.seconds > SLOWER * usual_s and mine.seconds > usual_s + SLOWER_BY_S:
        return f"a call takes {1000 * mine.seconds:.0f} ms, elsewhere {1000 * usual_s:.0f} ms"
    return None


def _usual_s(others: Iterable[Health]) -> float | None:
    known = [o.seconds for o in others if o.answers >= LEAST and o.seconds]
    return statistics.median(known) if known else None
