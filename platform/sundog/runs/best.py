"""The best checkpoint by a validation metric, kept beside the latest ones.

Only the model is kept, for the registry; a run goes on from its latest state, not its best.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sundog.clock import WALL
from sundog.errors import RunError, SundogError
from sundog.runs.checkpoint import Checkpoint, Checkpoints
from sundog.storage.root import Root

if TYPE_CHECKING:
    from sundog.runs.loop import Loop

_STATE = "state.pt"


class Best:
    """Called after every evaluation; saves the model when its metric is better than ever before."""

    def __init__(
        self,
        root: Root,
        folder: str,
        rule: str,
        note: Callable[[Mapping[str, Any]], None] = lambda fields: None,
    ) -> None:
        self._mode, self._metric = rule.split()
        self._checkpoints = Checkpoints(root, f"{folder}/best", keep=1)
        self._note = note
        self._value: float | None = None
        self._known = False

    def __call__(self, loop: Loop) -> None:
        """RunError when the evaluation has no such metric."""
        if loop.exchange is None or loop.exchange.rank != 0:
            return
        if self._metric not in loop.metrics:
            raise RunError(
                f"checkpoint.best: the run reports no metric {self._metric!r}",
                f"it has: {', '.join(sorted(loop.metrics)) or 'no validation split'}",
            )
        value = loop.metrics[self._metric]
        before = self._before()
        if not self._better(value, before):
            return
        import torch

        began_s = WALL.monotonic_s()
        buffer = io.BytesIO()
        torch.save({"step": loop.step, "model": loop.snapshot()["model"]}, buffer)
        about = {"metrics": dict(loop.metrics), "value": value}
        self._checkpoints.save(loop.step, {_STATE: buffer.getvalue()}, about)
        if loop.saver:  # the next step waits for this one as well
            loop.saver.stall_s += WALL.monotonic_s() - began_s
        self._value = value
        self._note({"step": loop.step, "metric": self._metric, "value": value, "before": before})

    def _better(self, value: float, before: float | None) -> bool:
        if math.isnan(value):
            return False
        if before is None:
            return True
        return value > before if self._mode == "max" else value < before

    def _before(self) -> float | None:
        if not self._known:  # a run that resumes has one already
            self._known = True
            found = self._checkpoints.latest()
            self._value = None if found is None else float(found.about["value"])
        return self._value


def best_checkpoint(root: Root, run_id: str) -> Checkpoint | None:
    """The best checkpoint of a run, None if it kept none that is whole."""
    try:
        return Checkpoints(root, f"runs/{run_id}/best").latest()
    except SundogError:
        return None
