"""The books of a live run: its nodes' seconds and dollars, and what became of each of them.

Node-seconds are those of distinct nodes: workers that share one share its seconds and its price. A
node that holds nothing but a standby of the run is the run's too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sundog.runs.bill import Bill, Prices, Spent
from sundog.runs.goodput import Account, Meter
from sundog.runs.news import nodes_of
from sundog.runs.stages import Change


class Books:
    """Adds up the news of a run's workers. `before` is the record as the driver before left it."""

    def __init__(self, before: Mapping[str, Any], prices: Prices, started_s: float) -> None:
        self.bill = Bill(prices, before.get("node_hours") or 0.0, before.get("usd"))
        step = before.get("step") or 0
        self._seconds = Meter(Account.of(before.get("account") or {}), step)
        self._dollars = Meter(Account.of(before.get("account_usd") or {}), step)
        self._seconds.stalled_s = before.get("stall_s") or 0.0
        self._before, self._started_s = before, started_s
        self._last: Mapping[str, Any] = {}
        self._standing: Mapping[str, bool] = {}
        self.usd_before = self.bill.usd or 0.0
        """What was spent before this driver began."""

    @property
    def account(self) -> Account:
        """Node-seconds by what became of them."""
        return self._seconds.account

    @property
    def stall_s(self) -> float:
        """How long steps have waited for checkpoints so far."""
        return self._seconds.stalled_s

    @property
    def fields(self) -> dict[str, Any]:
        """What the record says of it all."""
        dollars = self._dollars.account.seconds() if self.bill.usd is not None else None
        return {
            "goodput": self.account.goodput, "losses": self.account.shares(),
            "account": self.account.seconds(), "account_usd": dollars,
            "usd": self.bill.usd, "node_hours": self.bill.node_hours,
            "stall_s": self.stall_s, "accounted_s": self._last.get("at_s"),
        }  # fmt: skip

    def news(
        self, progress: Mapping[str, Any], found: Change | None, standing: Mapping[str, bool]
    ) -> None:
        """What the workers posted; `found` when they are another group than before. `standing` are
        nodes with standbys of the run, and whether these are ready."""
        if not self._last:
            self._between_drivers(nodes_of(progress))
        since_s = self._last["at_s"] if self._last else self._started_s
        end_s = max(since_s, progress["at_s"])
        group = nodes_of(self._last or progress)
        spent = self.bill.add(list(group), since_s, end_s)
        for meter, cost in ((self._seconds, spent.node_seconds), (self._dollars, spent.usd)):
            self._share(meter, cost, end_s - since_s, progress, found)
        for node, ready in self._standing.items():
            if node not in group:
                self._lose("idle" if ready else "startup", self.bill.add([node], since_s, end_s))
        self._last, self._standing = progress, standing

    def _between_drivers(self, nodes: set[str]) -> None:
        """A driver was killed: the nodes that were the run's before and still are waited for this one.
        Of others nobody knows whether they were there."""
        since_s = self._before.get("accounted_s")
        if not self._before.get("cut_off") or since_s is None:
            return
        same = nodes & nodes_of(self._before)
        self._lose("restart", self.bill.add(list(same), since_s, self._started_s))
        self.usd_before = self.bill.usd or 0.0

    def _lose(self, why: str, spent: Spent) -> None:
        self._seconds.waited(why, spent.node_seconds, 1.0)
        self._dollars.waited(why, spent.usd, 1.0)

    def _share(
        self, meter: Meter, cost: float, seconds: float, progress: Mapping[str, Any],
        found: Change | None,
    ) -> None:  # fmt: skip
        """What the group cost in these seconds, by what it did in them."""
        each, last = cost / seconds if seconds else 0.0, self._last
        if not last:
            meter.waited("startup", each, seconds)
            meter.stepped(progress["step"], each, 0.0, progress["stall_s"])
            return
        if found is None:
            meter.stepped(progress["step"], each, seconds, progress["stall_s"])
            return
        # The old group worked on for a while after its last news.
        meter.stepped(
            max(last["step"], progress["step"] + found.steps_back - 1),
            each, max(0.0, seconds - found.took_s), last["stall_s"],
        )  # fmt: skip
        meter.waited("restart", each, min(seconds, found.took_s))
        meter.stepped(progress["step"], each, 0.0, progress["stall_s"])
