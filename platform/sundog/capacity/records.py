"""What became of spot nodes, from the ledger: node-hours and interruptions by zone and shape. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sundog.ledger import Entry
from sundog.market.offers import Record

# Older than this says little of how a zone is today.
WINDOW_S = 30 * 86400.0


def spot_records(entries: Iterable[Entry], now_s: float) -> dict[str, Record]:
    """`zone/shape` -> what its spot nodes lived through in the last 30 days.

    A node counts the hours from its launch (or the window's start) to its end, and one interruption
    at most, whoever reported it.
    """
    start_s = now_s - WINDOW_S
    born: dict[str, Entry] = {}
    ended: dict[str, float] = {}
    interrupted: set[str] = set()
    for entry in sorted(entries, key=lambda e: e.at_s):
        if entry.kind == "launch" and entry.about.get("market") == "spot":
            born.setdefault(entry.node, entry)
        elif entry.kind == "terminate":
            ended.setdefault(entry.node, entry.at_s)
        elif entry.kind == "interruption" and entry.at_s >= start_s:
            interrupted.add(entry.node)
    out: dict[str, Record] = {}
    for node, entry in born.items():
        key = f"{entry.about.get('zone', '')}/{entry.about.get('shape', '')}"
        old = out.get(key, Record())
        hours = max(0.0, ended.get(node, now_s) - max(entry.at_s, start_s)) / 3600
        out[key] = Record(old.node_hours + hours, old.interruptions + (node in interrupted))
    return out
