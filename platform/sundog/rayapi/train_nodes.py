"""Which nodes of the cluster are about to go, and how many workers the others have room for now.

Reads Ray's own state, which costs a millisecond or two. Private part of Ray: the global state accessor.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

MARKET = "ray.io/market-type"
"""Ray's label of a node: spot or on-demand."""


def leaving() -> dict[str, float]:
    """Nodes that are being drained: hexadecimal id -> deadline in Unix seconds (0: none is known)."""
    draining: Mapping[str, int] = _state().get_draining_nodes() or {}
    return {node: deadline_ms / 1000 for node, deadline_ms in draining.items()}


def only(market: str) -> str | None:
    """The one market whose nodes a run may use; None: any."""
    return {"spot-only": "spot", "on-demand": "on-demand"}.get(market)


def elsewhere(market: str) -> dict[str, float]:
    """Nodes that a run of this market does not use, as `leaving` gives nodes."""
    import ray

    wanted = only(market)
    if wanted is None:
        return {}
    found = {n["NodeID"]: (n.get("Labels") or {}).get(MARKET) for n in ray.nodes() if n["Alive"]}
    return {node: 0.0 for node, has in found.items() if has != wanted}


def placing(market: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Options of an actor on nodes with these labels: of this market only, or there first."""
    always = dict(labels or {})
    wanted = only(market)
    if wanted is not None:
        return {"label_selector": {**always, MARKET: wanted}}
    if market == "spot-first":
        return {
            "label_selector": {**always, MARKET: "spot"},
            "fallback_strategy": [{"label_selector": always}],
        }
    return {"label_selector": always} if always else {}


def room(need: Mapping[str, float], without: Mapping[str, float]) -> int:
    """How many workers that need this much each fit into what is free on the nodes not in `without`."""
    count = 0
    for node, have in _state().available_resources_per_node().items():
        if node not in without:
            fits = [int(have.get(name, 0) // each) for name, each in need.items() if each > 0]
            count += min(fits, default=1)
    return count


def gone(nodes: Iterable[str]) -> set[str]:
    """Those of the nodes that are dead, or whose raylet takes no connection: the GCS needs up to half a
    minute to call such a node dead."""
    import ray

    where = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
    return {node for node in nodes if node not in where or not _listens(where[node])}


def _listens(node: Mapping[str, Any]) -> bool:
    try:
        where = (node["NodeManagerAddress"], node["NodeManagerPort"])
        with socket.create_connection(where, timeout=0.5):
            return True
    except OSError:
        return False


def can_grow() -> bool:
    """Whether an autoscaler may bring nodes: then work that waits for room is what asks for them."""
    return bool(_state().get_max_resources_from_cluster_config())


def _state() -> Any:
    from ray._private.state import state

    return state
