"""How often a run's workers are lost: what the ledger knows of spot nodes like its own, then its own
record.

Reads the ledger once, when a driver starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from sundog import telemetry
from sundog.clock import WALL, Clock
from sundog.errors import SundogError
from sundog.ledger.entries import Entry, parse_entry
from sundog.ledger.spot import WINDOW_S, Lived, place, spot_lives
from sundog.runs.bill import Prices
from sundog.runs.interval import LOSSES_PER_WORKER_HOUR, loss_rate
from sundog.storage.root import Root
from sundog.storage.runs import RunFolder


def losses_per_worker_hour(
    folder: RunFolder, node_ids: Iterable[str], clock: Clock = WALL
) -> float:
    """For a run that will be on some of these nodes, as far as the ledger and its record know."""
    record = folder.record()
    gone = (telemetry.RUN_RECOVERED, telemetry.RUN_DRAINED)
    losses = sum(c["event"] in gone for c in record.get("changes") or [])
    prior = market_rate(folder.root, node_ids, clock)
    return loss_rate(losses, record.get("node_hours") or 0.0, prior)


def market_rate(root: Root, node_ids: Iterable[str], clock: Clock = WALL) -> float:
    """Losses in a node-hour that these nodes' kinds have had, on their average: of a spot node those in
    its zone of its shape, of any other what is assumed of all."""
    records = [Prices(root).record(node) for node in node_ids]
    places = [
        place(r.get("zone", ""), r.get("shape", "")) if r.get("market") == "spot" else None
        for r in records
    ]
    if not any(places):
        return LOSSES_PER_WORKER_HOUR  # nothing to look up: the ledger may be long
    now_s = clock.now_s()
    try:
        lives = spot_lives(_entries(root, now_s - WINDOW_S), now_s)
    except SundogError:
        return LOSSES_PER_WORKER_HOUR  # an estimate is not worth a run
    seen = [lives.get(key, Lived()) if key else Lived() for key in places]
    return sum(loss_rate(one.interruptions, one.node_hours) for one in seen) / len(seen)


def _entries(root: Root, start_s: float) -> Iterator[Entry]:
    """As a RootLedger's `since`, many at a time: an object store takes a while for each."""
    first = datetime.fromtimestamp(start_s, UTC).date().isoformat()
    keys = [e.key for e in root.entries("ledger") if e.key.split("/")[1] >= first]
    for key, data in zip(keys, root.read_many(keys), strict=True):
        if data is not None:
            yield parse_entry(data.decode("utf-8", "replace"), key)
