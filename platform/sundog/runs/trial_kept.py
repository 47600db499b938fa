"""What a trial of a sweep leaves in the storage root: its checkpoints, the last and the best of them.

Any process finds them by the trial's name alone. Trains nothing and knows nothing of Tune.
"""

from __future__ import annotations

import json
import math
from typing import Any

from sundog.errors import NotFound
from sundog.runs.checkpoint import Checkpoint, Checkpoints
from sundog.storage.root import Root

FORMAT = 1


def trial_prefix(run_id: str, name: str) -> str:
    return f"runs/{run_id}/trials/{name}"


class Kept:
    """What a trial leaves in the root: checkpoints, and which of them is the last and the best.

    `origin`: prefix and step of another trial's checkpoint that it goes on from, until it has a
    last one of its own again.
    """

    def __init__(self, root: Root, prefix: str, keep: int = 2) -> None:
        self.root, self.prefix = root, prefix
        self.checkpoints = _PinnedCheckpoints(root, f"{prefix}/checkpoints", keep)
        self.last: int | None = None
        self.best: int | None = None
        self.best_value: float | None = None
        self.aside = False  # the best one's checkpoint lies apart
        self.origin: tuple[str, int] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read again what another process may have written."""
        try:
            kept = json.loads(self.root.read(f"{self.prefix}/state.json"))
        except (NotFound, ValueError):
            return
        self.last, self.best, self.best_value = kept["last"], kept["best"], kept["best_value"]
        self.origin = tuple(kept["origin"]) if kept.get("origin") else None
        self.aside = kept.get("aside", False)
        self.checkpoints.pinned = self.best

    def take_over(self, mark: dict[str, Any] | None) -> None:
        """Go on from the checkpoint of `mark` when it is another trial's; else nothing changes."""
        if mark is not None and mark["prefix"] != self.prefix:
            self.last, self.origin = None, (mark["prefix"], mark["step"])
            self._write()

    def source(self) -> tuple[Kept, int] | None:
        """Whose checkpoint to go on from, and which; None: from the beginning."""
        if self.last is not None:
            return self, self.last
        return None if self.origin is None else (Kept(self.root, self.origin[0]), self.origin[1])

    def improved(self, value: float, mode: str) -> bool:
        """Whether `value` is the best so far. NaN and infinities never are."""
        if not math.isfinite(value):
            return False
        sign, best = 1 if mode == "max" else -1, self.best_value
        return best is None or not math.isfinite(best) or sign * value > sign * best

    def note(self, step: int, value: float | None) -> None:
        """The checkpoint of `step` is the last one; with a `value`, the best as well."""
        self.last, self.origin = step, None
        if value is not None:
            self.best, self.best_value, self.aside = step, value, False
            self.checkpoints.pinned = step
        self._write()

    def _write(self) -> None:
        kept = {
            "format": FORMAT, "last": self.last, "best": self.best, "best_value": self.best_value,
            "origin": self.origin, "aside": self.aside,
        }  # fmt: skip
        self.root.write(f"{self.prefix}/state.json", json.dumps(kept).encode())

    def best_checkpoint(self) -> Checkpoint | None:
        """Of the best report; what it was saved with."""
        if self.best is None:
            return None
        return (self._apart if self.aside else self.checkpoints).read(self.best)

    def make_room(self, step: int) -> None:
        """A state of `step` that is not the best is about to be saved: the best one of an earlier
        life, before another trial was copied, may lie there."""
        if step == self.best and not self.aside:
            kept = self.checkpoints.read(step)
            self._apart.save(step, kept.parts, kept.about)
            self.aside = True
            self._write()

    @property
    def _apart(self) -> Checkpoints:
        return Checkpoints(self.root, f"{self.prefix}/best", keep=1)


class _PinnedCheckpoints(Checkpoints):
    """Never drops the pinned step."""

    pinned: int | None = None

    def surplus(self, newest: int) -> set[int]:
        return super().surplus(newest) - {self.pinned}
