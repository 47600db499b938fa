"""What nodes cost, by run, node type or day.

Prices are in the entries; how they become dollars is the market's business and handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sundog.ledger.entries import Entry

DAY_S = 86400.0
By = Literal["run", "node-type", "day"]
Dollars = Callable[[Mapping[str, Any], float, float], float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """`usd` None: some of these node-hours have no price; `unpriced_hours` says how many."""

    key: str
    node_hours: float
    usd: float | None
    unpriced_hours: float = 0.0


def node_records(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """The record of each node: when it came and went, what it is, and its prices over time."""
    nodes: dict[str, dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda e: e.at_s):
        node = nodes.setdefault(
            entry.node, {"start_s": None, "end_s": None, "prices": [], "about": {}, "run": None}
        )
        if entry.kind == "launch" and node["start_s"] is None:
            node["start_s"] = entry.at_s
            node["about"] = entry.about
            node["run"] = entry.run
        if entry.kind in ("launch", "price"):
            node["prices"].append([entry.at_s, entry.usd_hour])
        if entry.kind == "terminate" and node["end_s"] is None:
            node["end_s"] = entry.at_s
    return {k: n for k, n in nodes.items() if n["start_s"] is not None}


def cost(entries: Iterable[Entry], by: By, now_s: float, dollars: Dollars) -> list[Line]:
    """Node-hours and dollars, largest first. A node still running is counted up to `now_s`.

    `dollars(node, start_s, end_s)` is `market.prices.cost_between`.
    """
    sums: dict[str, list[float]] = {}
    for node in node_records(entries).values():
        end_s = node["end_s"] if node["end_s"] is not None else now_s
        for key, low, high in _pieces(node, by, node["start_s"], max(end_s, node["start_s"])):
            row = sums.setdefault(key, [0.0, 0.0, 0.0])
            hours = (high - low) / 3600
            usd = dollars(node, low, high)
            row[0] += hours
            if usd is None:
                row[2] += hours
            else:
                row[1] += usd
    lines = [Line(k, h, usd if not bare else None, bare) for k, (h, usd, bare) in sums.items()]
    return sorted(lines, key=lambda x: (-x.node_hours, x.key))


def _pieces(node: dict[str, Any], by: By, start_s: float, end_s: float) -> Iterable[Any]:
    if by != "day":
        about = node["about"]
        key = node["run"] or "(no run)" if by == "run" else f"{about.get('pool', '?')}"
        if by == "node-type":
            key += f" {about.get('market', '?')} {about.get('shape', '?')}"
        yield key, start_s, end_s
        return
    low = start_s
    while low < end_s:
        high = min(end_s, (low // DAY_S + 1) * DAY_S)
        yield datetime.fromtimestamp(low, UTC).date().isoformat(), low, high
        low = high
