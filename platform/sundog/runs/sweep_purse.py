"""What trials cost and when a sweep has to end: node-seconds, prices, caps and the forecast.

Prices come from the nodes' own records in the storage root, else from the spec; there is no guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sundog.clock import WALL, Clock
from sundog.errors import SpecError
from sundog.market.prices import price_at
from sundog.runs.bill import Prices
from sundog.runs.sweep_book import Book, Trial
from sundog.spec.sweep import SweepSpec
from sundog.storage.root import Root


class Rates:
    """Dollars an hour of a node, and the share of it that one worker of a trial takes."""

    def __init__(
        self, root: Root, need: Mapping[str, float], fallback: float | None, clock: Clock = WALL
    ) -> None:
        self._need, self.fallback, self._clock = need, fallback, clock
        self._prices = Prices(root, clock)

    def usd_hour(self, node_id: str) -> float | None:
        """The whole node's price now, the spec's `usd_node_hour` where it has none, else None."""
        price = price_at(self._prices.record(node_id), self._clock.now_s())
        return self.fallback if price is None else price

    def holds(self, node: Mapping[str, float]) -> bool:
        """Whether a worker fits into a node with these resources."""
        return all(node.get(name, 0) >= each for name, each in self._need.items())

    def share(self, node: Mapping[str, float]) -> float:
        """The largest share that a worker takes of any one resource of a node, at most 1."""
        shares = [each / node[name] for name, each in self._need.items() if node.get(name, 0) > 0]
        return min(1.0, max(shares, default=1.0))


def charge(trial: Trial, seconds: float, workers: Iterable[tuple[float, float | None]]) -> None:
    """Add `seconds` to what a trial cost, whose workers have each a share of a node at $/hour.

    Dollars are those that are known; what has no price is counted apart, in node-hours."""
    trial.node_s += seconds
    for share, usd_hour in workers:
        hours = seconds / 3600 * share
        trial.node_hours += hours
        if usd_hour is None:
            trial.unpriced_hours += hours
        else:
            trial.usd = (trial.usd or 0.0) + hours * usd_hour


def pay(trial: Trial, hours: float, usd_hour: float) -> None:
    """The price of so many of the trial's node-hours became known."""
    if hours > 0:
        left = trial.unpriced_hours - hours
        trial.unpriced_hours = left if left > 1e-12 else 0.0
        trial.usd = (trial.usd or 0.0) + hours * usd_hour


def require_prices(spec: SweepSpec, unpriced: Iterable[str]) -> None:
    """SpecError when a budget in dollars cannot be kept, because nodes have no price."""
    nodes = list(unpriced)
    if spec.max_usd is not None and nodes:
        raise SpecError(
            f"max_usd: {len(nodes)} of this cluster's nodes have no price, so nobody can say what "
            "a trial costs",
            "say what an hour of such a node is worth to you: usd_node_hour: $0.10/h",
        )
    if spec.max_usd == 0:
        raise SpecError("max_usd: $0 buys no trial", "give a budget, or none")


@dataclass(frozen=True)
class Forecast:
    """`usd` and `node_hours` at the end, if trials go on as they did; None: nothing to go by yet."""

    usd: float | None
    node_hours: float | None


def forecast(book: Book, total: int) -> Forecast:
    """What the whole sweep of `total` trials will have cost, by the mean of those that ended."""
    ended = [t for t in book.trials.values() if t.ended]
    if not ended:
        return Forecast(None, None)
    begun = [t for t in book.trials.values() if not t.ended]
    left = max(0, total - len(ended) - len(begun))
    hours = sum(t.node_hours for t in ended) / len(ended)
    node_hours = sum(t.node_hours for t in ended) + left * hours
    node_hours += sum(max(t.node_hours, hours) for t in begun)
    if book.usd is None or any(t.whole_usd is None for t in ended):
        return Forecast(None, node_hours)
    usd = sum(t.usd or 0.0 for t in ended) / len(ended)
    whole = sum(t.usd or 0.0 for t in ended) + left * usd
    return Forecast(whole + sum(max(t.usd or 0.0, usd) for t in begun), node_hours)


class Purse:
    """The caps of a sweep against what its book says. What has no price yet counts against `max_usd`
    at the `dearest` price an hour of a whole node that is known."""

    def __init__(
        self, spec: SweepSpec, book: Book, dearest: Callable[[], float | None] = lambda: None
    ) -> None:
        self._spec, self._book, self._dearest = spec, book, dearest

    def spent_usd(self) -> float:
        """At most, if the dearest node bounds what is not known."""
        spent = self._book.sums()
        return (spent.usd or 0.0) + spent.unpriced_hours * (self._dearest() or 0.0)

    def empty(self) -> str | None:
        """Why the sweep has to end now, or None."""
        spec = self._spec
        if spec.max_usd is not None and self.spent_usd() >= spec.max_usd:
            return f"the budget of ${spec.max_usd:g} is spent"
        if spec.max_time is not None and self._book.elapsed_s >= spec.max_time:
            return f"its time of {spec.max_time:g} s is over"
        if self._book.failed >= spec.max_failed:
            return f"{self._book.failed} trials failed"
        return None

    def too_small(self) -> str | None:
        """Why a fresh trial is not begun, or None: what is left must pay for its first report."""
        first = self.first_report_usd()
        if self._spec.max_usd is None or first is None:
            return None
        left = self._spec.max_usd - self.spent_usd()
        if left >= first:
            return None
        return f"${max(left, 0):.2g} of the budget are left; a first report costs ${first:.2g}"

    def first_report_usd(self) -> float | None:
        """What trials paid for one report, in the mean; None when none reported or has a price."""
        usd, reports = self._book.sums().told
        return usd / reports if reports else None
