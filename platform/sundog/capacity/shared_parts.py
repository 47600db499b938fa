"""The parts of a `ray up` file that do not depend on the cloud: node types, resources, commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sundog.capacity import commands
from sundog.capacity.check import Bought
from sundog.market.shapes import Shape
from sundog.spec.cluster import ClusterSpec, Disk, Pool
from sundog.spec.quantity import GIB

# Ray keeps 30% of a worker's memory for its object store.
RAY_HEAP_SHARE = 0.7
PRIORITY = {"spot": 20, "on-demand": 10}
"""Of node types, where nothing but Ray chooses between markets."""
# Ray's names of accelerators where they differ from ours.
RAY_ACCELERATOR = {"A100-80GB": "A100-80G", "V100-32GB": "V100", "RTX-PRO-6000": "RTX-PRO-6000"}


def resources(shapes: tuple[Shape, ...]) -> dict[str, int]:
    """What every rung of the ladder has: Ray may count on no more, whichever is bought."""
    out = {
        "CPU": min(s.vcpus for s in shapes),
        "memory": int(min(s.memory_gib for s in shapes) * GIB * RAY_HEAP_SHARE),
    }
    gpus = min(s.accelerators for s in shapes)
    if gpus:
        out["GPU"] = gpus
        kinds = {ray_accelerator(s) for s in shapes}
        if len(kinds) == 1:
            out[f"accelerator_type:{kinds.pop()}"] = 1
    return out


def ray_accelerator(shape: Shape) -> str:
    return RAY_ACCELERATOR.get(shape.accelerator, shape.accelerator)


def labels(name: str, pool: Pool, shapes: tuple[Shape, ...]) -> dict[str, str]:
    """Only what holds for every rung. Market and zone are set when the node starts."""
    out = {"sundog.pool": name}
    kinds = {ray_accelerator(s) for s in shapes if s.accelerator}
    if len(kinds) == 1:
        out["ray.io/accelerator-type"] = kinds.pop()
    if pool.market != "spot-first":
        out["ray.io/market-type"] = "spot" if pool.market == "spot-only" else "on-demand"
    return out | dict(pool.labels)


def frame(
    bought: Bought, provider: dict[str, Any], types: dict[str, Any], auth: dict[str, Any], *,
    cloud: str, elastic: bool = False, head_extra: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A whole `ray up` file. Every top-level key is there: for an external provider Ray adds none."""
    spec = bought.spec
    return {
        "cluster_name": spec.cluster,
        "max_workers": sum(p.nodes.high or 0 for p in spec.pools.values()),
        "upscaling_speed": 1.0,
        "docker": {},
        "idle_timeout_minutes": spec.idle / 60,
        "provider": provider,
        "auth": auth,
        "available_node_types": types,
        "head_node_type": "head",
        "file_mounts": commands.file_mounts(spec),
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": commands.setup(spec),
        "head_setup_commands": head_extra or [],
        "worker_setup_commands": [],
        "head_start_ray_commands": commands.start_head(spec, cloud, elastic),
        "worker_start_ray_commands": commands.start_worker(spec, cloud),
    }


def head_type(spec: ClusterSpec, node_config: dict[str, Any]) -> dict[str, Any]:
    """The head takes no tasks or actors (`CPU: 0`), so no spot node's work lands beside the GCS."""
    return {
        "resources": {"CPU": 0},
        "min_workers": 0,
        "max_workers": 0,
        "labels": {"sundog.pool": "head", "ray.io/market-type": "on-demand"},
        "node_config": node_config,
    }


def worker_type(
    spec: ClusterSpec, name: str, pool: Pool, shapes: tuple[Shape, ...],
    node_config: dict[str, Any], *, priority: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    out: dict[str, Any] = {
        "resources": resources(shapes),
        "min_workers": pool.nodes.low,
        "max_workers": pool.nodes.high,
        "labels": labels(name, pool, shapes),
        "node_config": node_config,
    }
    if pool.idle is not None:
        out["idle_timeout_s"] = pool.idle
    if priority is not None:
        out["priority"] = priority
    return out


def worker_types(
    bought: Bought, config: Callable[[Shape, Disk, str, str], dict[str, Any]], plain: bool
) -> dict[str, Any]:
    """A node type for each pool; where plain, one for each market, of its cheapest shape."""
    spec, types = bought.spec, {}
    for name, pool in spec.pools.items():
        plan = bought.pools[name]
        if not plain:
            # The provider puts each offer's own shape, market and zone over this.
            shapes = bought.shapes[name]
            first = next(s for s in shapes if s.name == plan.offers[0].shape)
            types[name] = worker_type(
                spec, name, pool, shapes, config(first, pool.disk, "on-demand", name)
            )
            continue
        for market in dict.fromkeys(o.market for o in plan.offers):
            best = next(o for o in plan.offers if o.market == market)
            shape = next(s for s in bought.shapes[name] if s.name == best.shape)
            typed = worker_type(
                spec, name, pool, (shape,), config(shape, pool.disk, market, name),
                priority=PRIORITY[market],
            )  # fmt: skip
            typed["labels"]["ray.io/market-type"] = market
            typed["min_workers"] = _least(pool, market)
            types[f"{name}-{market}"] = typed
    return types


def _least(pool: Pool, market: str) -> int:
    floor = min(pool.on_demand_floor, pool.nodes.low)
    if pool.market != "spot-first":
        return pool.nodes.low
    return pool.nodes.low - floor if market == "spot" else floor


def ssh_auth(spec: ClusterSpec, user: str) -> dict[str, Any]:
    auth: dict[str, Any] = {"ssh_user": user}
    if spec.ssh.private_key:
        auth["ssh_private_key"] = spec.ssh.private_key
    return auth
