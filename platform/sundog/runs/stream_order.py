"""The order of samples for data that is read in pieces: shuffled, yet every worker reads near itself.

Pure arithmetic, like `sampler.py`: any position of the stream is worked out alone, so there is
nothing to save but the step. Reads no data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sundog.runs.sampler import Indices, Stream, epoch_order, mix, permuted


@dataclass(frozen=True)
class StreamSampler(Stream):
    """Epoch after epoch of blocks in a shuffled order, rows shuffled inside windows of blocks.

    Rows `[i * block, (i + 1) * block)` are block `i`, the last one may be shorter. An epoch puts the
    blocks in a keyed order and shuffles the rows of every `window` of them. `lanes` contiguous parts
    of that order feed the `lanes` micro-batches of a batch: micro-batch m reads lane m from its
    start to its end, whichever worker computes it. So a worker reads the blocks of its lanes and a
    window of each at a time, the order is a function of (seed, step) alone, and every row comes
    exactly once an epoch (the idea of canonical lanes: MosaicML Streaming, "elastic determinism").
    """

    rows: int
    batch: int
    seed: int
    lanes: int
    block: int
    window: int

    def __post_init__(self) -> None:
        if min(self.rows, self.batch, self.lanes, self.block, self.window) < 1:
            raise ValueError(f"{self}: everything must be at least 1")
        if self.batch % self.lanes:
            raise ValueError(f"{self.lanes} lanes do not divide a batch of {self.batch}")

    def at(self, positions: Indices) -> Indices:
        epochs = positions // self.rows
        out = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = mix(self.seed, int(epoch), self.block, self.window)
            places = self._places(positions[here], int(epoch))
            out[here] = self._rows(places, key)
        return out

    def _places(self, positions: Indices, epoch: int) -> Indices:
        """Position of the stream -> place in the epoch's order, lane after lane.

        Positions go round the lanes batch by batch; in the order each lane's lie together.
        """
        micro = self.batch // self.lanes
        lane = positions % self.batch // micro
        begin = epoch * self.rows
        lanes = np.arange(self.lanes, dtype=np.int64)
        lengths = self._met(np.int64(begin + self.rows), lanes) - self._met(np.int64(begin), lanes)
        starts = np.cumsum(lengths) - lengths
        return starts[lane] + self._met(positions, lane) - self._met(np.int64(begin), lane)

    def _met(self, position: np.int64 | Indices, lane: Indices) -> Indices:
        """How many positions before `position` belong to `lane`."""
        micro = self.batch // self.lanes
        rest = np.clip(position % self.batch - lane * micro, 0, micro)
        out: Indices = position // self.batch * micro + rest
        return out

    def _rows(self, places: Indices, key: int) -> Indices:
        blocks = -(-self.rows // self.block)
        order = epoch_order(blocks, key)
        # All blocks are full but the last one, which lies anywhere in the order.
        short = int(np.flatnonzero(order == blocks - 1)[0])
        missing = blocks * self.block - self.rows
        full = self.window * self.block

        def start_of(slot: int) -> int:
            return slot * self.block - (missing if slot > short else 0)

        # Where the first window after the short one begins.
        turn = start_of(min(blocks, (short // self.window + 1) * self.window))
        window = np.where(
            places < turn, places // full, short // self.window + 1 + (places - turn) // full
        )
        shuffled = np.empty_like(places)
        for w in np.unique(window):
            here = window == w
            low = start_of(int(w) * self.window)
            high = start_of(min(blocks, (int(w) + 1) * self.window))
            shuffled[here] = low + permuted(places[here] - low, high - low, mix(key, int(w)))
        after = start_of(short + 1)
        slot = np.where(
            shuffled < after, shuffled // self.block, short + 1 + (shuffled - after) // self.block
        )
        starts = slot * self.block - np.where(slot > short, missing, 0)
        out: Indices = order[slot] * self.block + (shuffled - starts)
        return out
