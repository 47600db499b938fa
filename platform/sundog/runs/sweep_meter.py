"""Turns the time of running trials into money: each worker's share of its node, at the price of now.

Time on a node that has no price (yet) is kept apart: dollars that are known stay known, and it is
paid for when the price appears. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sundog.runs.sweep_book import Book
from sundog.runs.sweep_purse import Rates, charge, pay

NodesNow = Callable[[], Mapping[str, Mapping[str, float]]]


class Meter:
    """`nodes` gives the resources of each node that is alive. A trial that has not said where it
    runs pays what the dearest node with a price asks."""

    def __init__(self, book: Book, rates: Rates, nodes: NodesNow) -> None:
        self._book, self._rates, self._nodes = book, rates, nodes
        self._shares: dict[str, float] = {}  # of every node that was seen
        self._alive: list[str] = []
        self._looked = False
        self._where: dict[str, list[str]] = {}  # the nodes of a trial's workers, one each
        self._owed: dict[tuple[str, str], float] = {}  # (trial, node) -> its node-hours
        self._without_s: dict[str, float] = {}  # node -> how long it was used without a price
        self._dearest: float | None = rates.fallback
        if rates.fallback is not None:
            # Now it is said what such nodes of earlier drivers are worth.
            for trial in book.trials.values():
                pay(trial, trial.unpriced_hours, rates.fallback)
            book.changed()

    def placed(self, trial: str, nodes: Sequence[str]) -> None:
        """Where the trial's workers are, one node each."""
        self._where[trial] = list(nodes)
        owed = self._owed.pop((trial, ""), 0.0)
        if owed and nodes:
            self._owe(trial, nodes[0], owed)

    def charge(self, names: Sequence[str], seconds: float, workers: int) -> None:
        """These trials ran for so many seconds since the last call, each with so many workers."""
        self._settle()
        self._looked = False
        used: set[str] = set()
        for name in names:
            trial, nodes = self._book.trials[name], self._where.get(name) or [""] * workers
            rows = [self._rate(node) for node in nodes]
            charge(trial, seconds, rows)
            for node, (share, usd_hour) in zip(nodes, rows, strict=True):
                if usd_hour is None:
                    self._owe(name, node, seconds / 3600 * share)
                    used.add(node)
        for node in used:
            self._without_s[node] = self._without_s.get(node, 0.0) + seconds

    def without_price(self, least_s: float) -> list[str]:
        """Nodes that trials have used for so long without any price of theirs."""
        return sorted(n for n, s in self._without_s.items() if s >= least_s)

    @property
    def dearest_usd_hour(self) -> float | None:
        """Of a whole node, of all that were seen; None: no node had a price."""
        return self._dearest

    def _owe(self, trial: str, node: str, hours: float) -> None:
        self._owed[trial, node] = self._owed.get((trial, node), 0.0) + hours

    def _settle(self) -> None:
        """Pay for what was used before the node's price was known."""
        for (name, node), hours in list(self._owed.items()):
            usd_hour = self._price(node) if node else self._dearest
            if usd_hour is not None:
                del self._owed[name, node]
                self._without_s.pop(node, None)
                pay(self._book.trials[name], hours, usd_hour)
                self._book.changed()

    def _price(self, node: str) -> float | None:
        usd_hour = self._rates.usd_hour(node)
        if usd_hour is not None:
            self._dearest = max(usd_hour, self._dearest or 0.0)
        return usd_hour

    def _rate(self, node: str) -> tuple[float, float | None]:
        """(share, $/h) of a node at this moment."""
        if node not in self._shares and not self._looked:
            self._looked = True  # once in a look, however many trials have no place yet
            found = {n: have for n, have in self._nodes().items() if self._rates.holds(have)}
            self._alive = list(found)
            self._shares |= {n: self._rates.share(have) for n, have in found.items()}
        if node in self._shares:
            return self._shares[node], self._price(node)
        if node:  # it came and went between two looks, or holds no worker by its own account
            return 1.0, self._price(node)
        rows = [(self._shares[n], self._price(n)) for n in self._alive]
        priced = [(share, usd) for share, usd in rows if usd is not None]
        if priced:
            return max(priced, key=lambda row: row[0] * row[1])
        return max((share for share, _ in rows), default=1.0), None
