"""What became of spot nodes, as offers take it: node-hours and interruptions by zone and shape. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sundog.ledger import Entry
from sundog.ledger.spot import WINDOW_S, spot_lives
from sundog.market.offers import Record

__all__ = ["WINDOW_S", "spot_records"]


def spot_records(entries: Iterable[Entry], now_s: float) -> dict[str, Record]:
    """`zone/shape` -> what its spot nodes lived through in the last 30 days."""
    lives = spot_lives(entries, now_s)
    return {key: Record(lived.node_hours, lived.interruptions) for key, lived in lives.items()}
