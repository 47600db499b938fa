"""Which version answers a request: exact shares without state to share, or sticky by a key.

Responsible for turning weights into choices. Refuses to know versions' health or who set weights.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: the most even of all such sequences
_SPAN = 1 << 64


class Split:
    """Versions and their weights, ready to choose from.

    Without a key, the n-th request goes where the n-th point of the golden-ratio sequence falls
    (Weyl 1916; Knuth, TAOCP 3, 6.4): off by a few requests in 100,000, and no rhythm of the
    requests can resonate with it. With a key, where the key's hash falls: a version listed first
    keeps its keys when its weight grows, so list the candidate first.
    """

    __slots__ = ("_bounds", "_next", "_salt", "_versions")

    def __init__(self, weights: Mapping[str, float], salt: str = "", start: int = 0) -> None:
        """`weights`: version -> share, summing to 1. `start` sets gateways apart from each other.

        Raises ValueError for weights that are negative or do not sum to 1.
        """
        if any(not 0 <= w <= 1 for w in weights.values()):
            raise ValueError(f"weights lie in 0..1: {dict(weights)}")
        total = math.fsum(weights.values())
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"weights sum to {total:g}, not to 1: {dict(weights)}")
        used = [(v, w) for v, w in weights.items() if w > 0]
        self._versions = [v for v, _ in used]
        # All but the last bound; the last version takes what rounding leaves.
        self._bounds = [round(c * _SPAN) for c in accumulate(w for _, w in used)][:-1]
        self._salt = salt.encode()
        self._next = start * _GOLDEN % _SPAN

    def choose(self) -> str:
        """The version for the next request without a key."""
        if not self._bounds:
            return self._versions[0]
        self._next = (self._next + _GOLDEN) % _SPAN
        return self._versions[bisect_right(self._bounds, self._next)]

    def sticky(self, key: str) -> str:
        """The version for `key`: the same on every gateway and after every restart."""
        if not self._bounds:
            return self._versions[0]
        digest = hashlib.blake2b(key.encode(), digest_size=8, key=self._salt[:64]).digest()
        return self._versions[bisect_right(self._bounds, int.from_bytes(digest, "big"))]
