"""Where a run happens: the Ray cluster it is connected to and the storage root it uses.

Finds both and says what to do when one is missing; starts neither.
"""

from __future__ import annotations

import logging
import os

from sundog.errors import ClusterError, RunError, first_line
from sundog.storage.root import Root, open_root, require_shared


def connect() -> None:
    """Connect this driver to the cluster of its job, or to the one that runs here."""
    import ray

    if ray.is_initialized():
        return
    try:
        # What workers print is in the run's own logs; here it would drown the progress.
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            log_to_driver=bool(os.environ.get("SUNDOG_VERBOSE")),
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(
            f"no Ray cluster to run on: {first_line(error)}",
            "start one with `make up`, or submit the job: ray job submit -- python jobs/train.py …",
        ) from None


def resolve_root(address: str | None) -> Root:
    """The root of the spec, else SUNDOG_ROOT, else what the cluster's own record says."""
    if address or os.environ.get("SUNDOG_ROOT"):
        return open_root(address or None)
    import ray

    from sundog.rayapi.kv import get_config

    config = get_config() if ray.is_initialized() else None
    if config and config.get("root"):
        return open_root(config["root"])
    return open_root(None)  # raises, with the way out


def check_reach(root: Root) -> None:
    """StorageUnavailable for a root on this machine's disk when the cluster has other machines."""
    import ray

    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    machines = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    require_shared(root, min(len(hosts), len(machines)))


def check_fit(workers: int, resources: dict[str, float], market: str = "any") -> None:
    """RunError when the cluster, which does not grow, can never hold the smallest run allowed."""
    import ray

    from sundog.rayapi import train_nodes
    from sundog.rayapi.cluster import may_grow

    if may_grow():
        return
    total = ray.cluster_resources()
    for name, each in resources.items():
        if each * workers > total.get(name, 0):
            raise RunError(
                f"{workers} workers need {each * workers:g} {name}, this cluster has "
                f"{total.get(name, 0):g}",
                "ask for fewer workers or less for each, or start a larger cluster",
            )
    if train_nodes.only(market) and (fit := capacity(resources, market)) < workers:
        raise RunError(
            f"market: {market}: nodes of this cluster with the label {train_nodes.MARKET}="
            f"{train_nodes.only(market)} have room for {fit} of {workers} workers",
            "write market: any (or spot-first), or start nodes with that label",
        )


def capacity(resources: dict[str, float], market: str = "any") -> int:
    """How many workers fit into the nodes of the market that are alive now, whatever else runs there."""
    import ray

    from sundog.rayapi import train_nodes

    without = train_nodes.elsewhere(market)
    count = 0
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in without:
            have = node["Resources"]
            fits = [int(have.get(n, 0) // each) for n, each in resources.items() if each > 0]
            count += min(fits, default=0)
    return count


def node_ids(market: str = "any") -> list[str]:
    """The nodes of the market that are alive now and can hold workers."""
    import ray

    from sundog.rayapi import train_nodes

    without = train_nodes.elsewhere(market)
    return [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] not in without
    ]


def room_on(market: str, resources: dict[str, float]) -> int:
    """How many workers fit into what is free now on nodes of this market that are to stay."""
    import ray

    from sundog.rayapi import train_nodes

    label = train_nodes.MARKET
    others = [n["NodeID"] for n in ray.nodes() if (n.get("Labels") or {}).get(label) != market]
    return train_nodes.room(resources, dict.fromkeys(others, 0.0) | train_nodes.leaving())


def working_directory() -> str | None:
    """Where recipes are imported from on other processes: None when Ray ships it (a submitted job)."""
    import ray

    env = ray.get_runtime_context().runtime_env or {}
    return None if env.get("working_dir") else os.getcwd()  # noqa: PTH109 - a string travels
