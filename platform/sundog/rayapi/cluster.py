"""What this process's Ray says of its cluster, and how much Ray says unasked.

Private parts of Ray: the global state accessor, and the name of one of its loggers.
"""

from __future__ import annotations

import logging


def may_grow() -> bool:
    """Whether an autoscaler may bring what is missing now."""
    from ray._private.state import state

    return bool(state.get_max_resources_from_cluster_config())


def leaving_nodes() -> frozenset[str]:
    """Ids of nodes that are drained or dead, as far as Ray remembers them."""
    import ray
    from ray._private.state import state

    dead = {str(node["NodeID"]) for node in ray.nodes() if not node["Alive"]}
    return frozenset(dead | set(state.get_draining_nodes() or {}))


def labels_of_nodes() -> list[dict[str, str]]:
    """The labels of each node that is there."""
    import ray

    return [dict(node["Labels"]) for node in ray.nodes() if node["Alive"]]


def quiet() -> None:
    """Ray's client says much while it packs a folder, none of it for the person at a command."""
    import ray.dashboard.modules.dashboard_sdk as sdk

    for name in ("ray", sdk.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)
