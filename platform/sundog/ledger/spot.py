"""What became of spot nodes, from the ledger: node-hours and interruptions by zone and shape. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sundog.ledger.entries import Entry

# Older than this says little of how a zone is today.
WINDOW_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Lived:
    """What the spot nodes of one shape in one zone lived through."""

    node_hours: float = 0.0
    interruptions: int = 0


def place(zone: str, shape: str) -> str:
    """What `spot_lives` is keyed by."""
    return f"{zone}/{shape}"


def spot_lives(entries: Iterable[Entry], now_s: float) -> dict[str, Lived]:
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
    out: dict[str, Lived] = {}
    for node, entry in born.items():
        key = place(entry.about.get("zone", ""), entry.about.get("shape", ""))
        old = out.get(key, Lived())
        hours = max(0.0, ended.get(node, now_s) - max(entry.at_s, start_s)) / 3600
        out[key] = Lived(old.node_hours + hours, old.interruptions + (node in interrupted))
    return out
