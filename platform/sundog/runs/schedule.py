"""The learning rate as a share of the optimizer's own, by how many samples of the run are done.

Pure. Follows samples and not steps, so that another batch does not mean another curve.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sundog.spec.run import Schedule


def factor(schedule: Schedule, done: int, total: int) -> float:
    """What the learning rate is multiplied with for the step that begins after `done` samples.

    Warm-up rises in a line to 1; then the shape falls to `end` at `total` samples (cosine:
    Loshchilov & Hutter, 2017, without restarts).
    """
    warmup = schedule.warmup_samples(total)
    if done < warmup:
        return (done + 1) / (warmup + 1)
    if schedule.shape == "constant":
        return 1.0
    share = min(1.0, (done - warmup) / max(1, total - warmup))
    fall = share if schedule.shape == "linear" else (1 - math.cos(math.pi * share)) / 2
    return 1.0 - (1.0 - schedule.end) * fall
