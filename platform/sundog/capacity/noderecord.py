"""Writes `nodes/<node_id>.json` when a node has joined: what it is, how it was bought, its price.

Once per node, from the node's own metadata and the tags it was born with; no tag means no price.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from sundog.errors import AlreadyExists

FORMAT = 1


class Creates(Protocol):
    """The part of a storage root that a record needs."""

    def create(self, key: str, data: bytes) -> str: ...


def write_record(
    root: Creates,
    node_id: str,
    instance_id: str,
    cloud: str,
    about: Mapping[str, str],
    now_s: float,
) -> dict[str, Any]:
    """The record as written. `about` is `Metadata.about()`; an earlier record of the node stays."""
    record = {
        "format": FORMAT, "node_id": node_id, "instance_id": instance_id, "cloud": cloud,
        "region": about.get("region", ""), "zone": about.get("zone", ""),
        "market": about.get("market", ""), "shape": about.get("shape", ""),
        "pool": about.get("pool", ""), "started_s": now_s, "prices": _prices(about, now_s),
    }  # fmt: skip
    # Where the agent was restarted, the first record stays: it says when the node began.
    with contextlib.suppress(AlreadyExists):
        root.create(f"nodes/{node_id}.json", json.dumps(record, sort_keys=True).encode())
    return record


def _prices(about: Mapping[str, str], now_s: float) -> list[list[float]]:
    try:
        return [[now_s, float(about["usd_hour"])]]
    except (KeyError, ValueError):
        return []
