"""The places that trials take: how many workers each has, how many run at once, on which market.

The sizes are arithmetic on what the cluster holds; the request that Tune makes a placement group of
reserves all workers of a trial or none, so that trials never wait for each other's workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sundog.rayapi.train_nodes import MARKET
from sundog.spec.run import Market
from sundog.spec.sweep import SweepSpec

Need = Mapping[str, float]  # resource -> how much of it one worker takes


@dataclass(frozen=True)
class Sizes:
    """`workers` of one trial, and how many trials run `at_once`."""

    workers: int
    at_once: int


def sizes(spec: SweepSpec, places: int, trials: int, may_grow: bool) -> Sizes:
    """For a cluster with room for so many workers. More trials go before wider ones: they do not
    wait for each other. A cluster that grows is taken at its word where the spec says how many."""
    low, high = spec.run.workers.low, spec.run.workers.high or spec.run.workers.low
    fits = max(1, places // low)
    if spec.concurrent == "auto":
        at_once = min(fits, trials)
    else:
        at_once = min(spec.concurrent, trials) if may_grow else min(spec.concurrent, fits, trials)
    at_once = max(1, at_once)
    return Sizes(max(low, min(high, places // at_once)), at_once)


class Room:
    """What each trial asks Tune for. `free` gives the workers that fit into nodes of a market now."""

    def __init__(
        self, need: Need, workers: int, market: Market, free: Callable[[str], int]
    ) -> None:
        self.workers = workers
        self._need, self._market, self._free = dict(need), market, free

    def request(self, before: int = 0) -> Any:
        """A placement group for one more trial, as Tune makes one; `before` trials wait for a place
        of theirs.

        Placement groups know no second choice of labels, so spot comes first by asking whether there
        is room on it at this moment, at each start of a trial anew.
        """
        from ray import tune

        market = self._wanted(before)
        some = {k: v for k, v in self._need.items() if v}
        labels = {"bundle_label_selector": [{MARKET: market}] * self.workers} if market else {}
        if self.workers == 1:
            return tune.PlacementGroupFactory([some], **labels)
        # The trial's own process takes nothing: it only talks to its workers.
        return tune.PlacementGroupFactory([{}, *[some] * self.workers], strategy="PACK", **labels)

    def _wanted(self, before: int) -> str | None:
        if self._market == "spot-only":
            return "spot"
        if self._market == "on-demand":
            return "on-demand"
        if self._market == "spot-first" and self._free("spot") >= self.workers * (before + 1):
            return "spot"
        return None
