"""Which samples a step consumes: a pure function of (seed, step), never of how many workers there are.

Holds the order of samples and its split over workers; reads no data and keeps no state.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_ROUNDS = 8
_REMEMBERED_ROWS = 1 << 20  # up to here an epoch's order is worked out once and kept (8 MiB)


def mix(*parts: int) -> int:
    """A 64-bit key from integers, the same on every machine and in every version."""
    packed = b"".join(int(p % 2**64).to_bytes(8, "little") for p in parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


class Stream(ABC):
    """Epochs of `rows` rows in some order, one after the other, cut into batches of equal size."""

    rows: int
    batch: int

    def steps_in(self, epochs: float) -> int:
        """Steps that consume at least `epochs` epochs."""
        return max(1, -(-round(self.rows * epochs) // self.batch))

    def epoch_at(self, step: int) -> float:
        """How many epochs were consumed before `step`."""
        return step * self.batch / self.rows

    def indices(self, step: int, start: int = 0, stop: int | None = None) -> Indices:
        """Rows `[start, stop)` of the batch of `step`, as int64 row numbers of the data set."""
        stop = self.batch if stop is None else stop
        positions = np.arange(step * self.batch + start, step * self.batch + stop, dtype=np.int64)
        return self.at(positions)

    @abstractmethod
    def at(self, positions: Indices) -> Indices:
        """The rows at these positions of the stream."""


@dataclass(frozen=True)
class Sampler(Stream):
    """The stream of samples: epoch after epoch, each a permutation, cut into batches of equal size.

    Position `p` of the stream is place `p % rows` of epoch `p // rows`; step `s` consumes positions
    `[s * batch, (s + 1) * batch)`. A batch may straddle two epochs, so every sample is consumed
    exactly once an epoch, whatever the batch.
    """

    rows: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError("a data set without rows cannot be sampled")
        if self.batch < 1:
            raise ValueError(f"a batch of {self.batch} rows")

    def at(self, positions: Indices) -> Indices:
        epochs, places = np.divmod(positions, self.rows)
        out = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = mix(self.seed, int(epoch))
            if self.rows <= _REMEMBERED_ROWS:
                out[here] = epoch_order(self.rows, key)[places[here]]
            else:
                out[here] = permuted(places[here], self.rows, key)
        return out


@functools.lru_cache(maxsize=4)
def epoch_order(rows: int, key: int) -> Indices:
    """The whole permutation of `range(rows)`, kept for the next call."""
    return permuted(np.arange(rows, dtype=np.int64), rows, key)


def permuted(places: Indices, rows: int, key: int) -> Indices:
    """Where a keyed permutation of `range(rows)` sends these places.

    A Feistel network on the next even power of two, walked until it lands inside (cycle walking;
    Black & Rogaway, 2002): any place is computed alone, without holding the permutation in memory,
    and the result depends on no library's random stream.
    """
    if rows == 1:
        return np.zeros_like(places)
    half = np.uint64(max(1, ((rows - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(mix(key, r)) for r in range(_ROUNDS)]
    out = places.astype(np.uint64)
    pending = np.ones(len(out), dtype=bool)
    while pending.any():
        left, right = out[pending] >> half, out[pending] & mask
        for round_key in keys:
            left, right = right, left ^ (_scramble(right ^ round_key) & mask)
        out[pending] = (left << half) | right
        pending = out >= np.uint64(rows)
    return out.astype(np.int64)


def _scramble(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # The finaliser of splitmix64 (Steele, Lea & Flood, 2014); numpy wraps on overflow, as wanted.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def share(count: int, world: int, rank: int) -> tuple[int, int]:
    """The contiguous range of `count` micro-batches that `rank` of `world` computes."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}")
    return rank * count // world, (rank + 1) * count // world


def fingerprint(indices: Indices) -> int:
    """63 bits that name these rows in this order: what the ledger of consumed samples keeps."""
    data = np.ascontiguousarray(indices, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
