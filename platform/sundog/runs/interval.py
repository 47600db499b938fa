"""How often to save: by steps, by time, or by what a save costs and how often workers are lost.

Pure arithmetic on numbers that are handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_SHORTEST_S, _LONGEST_S = 2.0, 600.0
LOSSES_PER_WORKER_HOUR = 0.1  # until the market's own record is known


def young_daly_s(cost_s: float, mean_time_between_failures_s: float) -> float:
    """Seconds of work between two saves that waste the least (Young, 1974; Daly, 2006).

    Daly's higher-order estimate for cost < 2 * MTBF; beyond that, saving as often as failing.
    """
    cost_s, mtbf_s = max(cost_s, 1e-9), mean_time_between_failures_s
    if mtbf_s <= 0:
        raise ValueError("a mean time between failures is positive")
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = cost_s / (2 * mtbf_s)
    return math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def loss_rate(losses: int, worker_hours: float, prior: float = LOSSES_PER_WORKER_HOUR) -> float:
    """Losses in a worker-hour, from what was seen so far: the mean of a gamma posterior whose prior
    weighs as much as one loss at the rate `prior`."""
    return (1.0 + losses) / (1.0 / prior + worker_hours)


@dataclass
class Cadence:
    """Whether it is time to save. `every` is the spec's: 'auto', an int of steps, or '600s'."""

    every: str | int = "auto"
    workers: int = 1
    losses_per_worker_hour: float = LOSSES_PER_WORKER_HOUR
    cost_s: float = 0.02  # replaced by what saves are measured to cost

    def saw_stall(self, stall_s: float) -> None:
        self.cost_s = 0.5 * self.cost_s + 0.5 * stall_s

    @property
    def fixed(self) -> bool:
        """Whether the spec names a number of steps."""
        return isinstance(self.every, int)

    def due(self, steps: int, seconds: float) -> bool:
        """Whether to save, this many steps and seconds after the last time."""
        if isinstance(self.every, int):
            return steps >= self.every
        return steps > 0 and seconds >= self.interval_s

    @property
    def interval_s(self) -> float:
        if self.every != "auto":
            return float(str(self.every).removesuffix("s"))
        rate = max(self.losses_per_worker_hour * self.workers, 1e-6)
        return min(_LONGEST_S, max(_SHORTEST_S, young_daly_s(self.cost_s, 3600.0 / rate)))
