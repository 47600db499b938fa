"""How many rows one call of the model gets: as many as it answers within the service's latency. Pure.

Learns what a call costs, so much and so much more for each row, from calls that were made.
"""

from __future__ import annotations

import math

_MEMORY = 0.98
"""What an older call counts against the next: about the last fifty are remembered."""
_MOST_GROWTH = 2
"""Sizes that were never tried are approached by doubling: far off, the line is a guess."""


class BatchSize:
    """For one version. `most`: what the spec allows; `bound_s`: how long a call may be with a replica;
    None: nothing is asked, the spec's size is used."""

    __slots__ = ("_rows", "_rows2", "_rows_s", "_s", "_tried", "_weight", "bound_s", "most", "now")

    def __init__(self, most: int, bound_s: float | None = None) -> None:
        self._weight = self._rows = self._rows2 = self._s = self._rows_s = 0.0
        self._tried = 1
        self.limit(most, bound_s)

    def limit(self, most: int, bound_s: float | None) -> None:
        """The spec says so now; what was learnt stays."""
        self.most, self.bound_s = most, bound_s
        self.now = most if bound_s is None else min(most, self._fitting())

    def observed(self, rows: int, seconds: float) -> None:
        """A call of so many rows came back. Least squares with forgetting."""
        if self.bound_s is None or rows < 1:
            return
        self._weight = self._weight * _MEMORY + 1
        self._rows = self._rows * _MEMORY + rows
        self._rows2 = self._rows2 * _MEMORY + rows * rows
        self._s = self._s * _MEMORY + seconds
        self._rows_s = self._rows_s * _MEMORY + rows * seconds
        self._tried = max(self._tried, rows)
        self.now = min(self.most, self._fitting())

    def _fitting(self) -> int:
        if self._weight == 0 or self.bound_s is None:
            return self.most
        base_s, row_s = self.cost_s()
        if row_s <= 0:
            fits = math.inf
        elif base_s + row_s > self.bound_s:
            # Not even one row is in time: smaller calls would only answer fewer, as late.
            fits = base_s / row_s
        else:
            fits = (self.bound_s - base_s) / row_s
        return int(max(1, min(fits, _MOST_GROWTH * self._tried)))

    def cost_s(self) -> tuple[float, float]:
        """(seconds of a call, seconds more for each row) as learnt; neither is negative."""
        rows, seconds = self._rows / self._weight, self._s / self._weight
        spread = self._rows2 / self._weight - rows * rows
        if spread < 1e-6 * max(1.0, rows * rows):
            # One size only: all of it may be the rows', which errs on the side of small calls.
            return 0.0, seconds / rows
        row_s = max(0.0, (self._rows_s / self._weight - rows * seconds) / spread)
        row_s = min(row_s, seconds / rows)
        return seconds - row_s * rows, row_s
