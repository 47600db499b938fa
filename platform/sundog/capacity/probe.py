"""How fast the nodes of a pool talk to each other: one small all-reduce, before a long run pays for it.

One process a node: NCCL where every one of them sees CUDA, holding one GPU a node for some seconds, and
gloo elsewhere, holding nothing. What a node's resources say of GPUs is not asked: they may be a name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sundog.errors import ClusterError
from sundog.rayapi.links import SMALL_BYTES, bus_gbyte_s, median_s

BYTES = 64 * 2**20
LIMIT_S = 120.0
POOL_LABEL, ZONE_LABEL = "sundog.pool", "ray.io/availability-zone"


@dataclass(frozen=True)
class Probe:
    """`bus_gbyte_s` is that of the slowest rank's median time."""

    pool: str
    nodes: int
    zones: list[str]
    backend: str
    mbytes: float
    bus_gbyte_s: float
    latency_ms: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def members(nodes: Sequence[dict[str, Any]], pool: str, most: int | None) -> list[dict[str, Any]]:
    """The live nodes of the pool. ClusterError below two: one node has no network to measure."""
    live = [n for n in nodes if n.get("Alive")]
    found = [n for n in live if (n.get("Labels") or {}).get(POOL_LABEL) == pool][:most]
    if len(found) < 2:
        known = sorted({(n.get("Labels") or {}).get(POOL_LABEL, "") for n in live} - {"", "head"})
        raise ClusterError(
            f"pool {pool!r} has {len(found)} live nodes, and a probe needs two",
            f"pools with nodes now: {', '.join(known) or 'none'}",
        )
    return found


def interface_of(address: str) -> str | None:
    """The network interface that has this address; gloo would otherwise ask the host's name."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == address for a in addresses):
            return str(name)
    return None


class Rank:
    """One process of the probe, on one node."""

    def meet(self) -> tuple[str, int]:
        """Where the others find rank 0."""
        import ray

        address = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((address, 0))
            return address, int(free.getsockname()[1])

    def sees_cuda(self) -> bool:
        """Whether torch could use a GPU of this node, though Ray gave this process none."""
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # empty, from Ray; nothing has read it yet
        import torch

        return torch.cuda.is_available()

    def run(self, rank: int, world: int, at: tuple[str, int], size_bytes: int, gpu: bool) -> Any:
        """(median seconds of the large all-reduce, of a tiny one)"""
        from datetime import timedelta

        import ray
        import torch.distributed as dist

        interface = interface_of(ray.util.get_node_ip_address())
        if interface:
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
        dist.init_process_group(
            "nccl" if gpu else "gloo", init_method=f"tcp://{at[0]}:{at[1]}", rank=rank,
            world_size=world, timeout=timedelta(seconds=LIMIT_S / 2),
        )  # fmt: skip
        try:
            device = "cuda" if gpu else "cpu"
            return median_s(size_bytes, device), median_s(SMALL_BYTES, device)
        finally:
            dist.destroy_process_group()


def probe(
    pool: str, *, address: str = "auto", most: int | None = None, size_bytes: int = BYTES
) -> Probe:
    """Measure the pool's nodes as they are. ClusterError for too few, busy or silent ones."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    found = members(ray.nodes(), pool, most)
    ranks = _ranks(found, gpus=0)
    try:
        gpu = all(ray.get([r.sees_cuda.remote() for r in ranks], timeout=LIMIT_S))
        if gpu:
            _end(ranks)
            ranks = _ranks(found, gpus=1)
        at = ray.get(ranks[0].meet.remote(), timeout=LIMIT_S)
        calls = [r.run.remote(i, len(ranks), at, size_bytes, gpu) for i, r in enumerate(ranks)]
        times = ray.get(calls, timeout=LIMIT_S)
    except GetTimeoutError:
        raise ClusterError(
            f"no answer from all {len(ranks)} nodes in {LIMIT_S:.0f} s",
            "are their GPUs busy, or is traffic between them blocked?",
        ) from None
    except RayError as error:
        raise ClusterError(f"the probe failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        _end(ranks)
    slowest = max(t[0] for t in times)
    zones = sorted({(n.get("Labels") or {}).get(ZONE_LABEL, "") for n in found} - {""})
    return Probe(
        pool, len(found), zones, "nccl" if gpu else "gloo", size_bytes / 2**20,
        round(bus_gbyte_s(len(found), size_bytes, slowest), 3),
        round(max(t[1] for t in times) * 1e3, 3),
    )  # fmt: skip


def _ranks(nodes: Sequence[dict[str, Any]], gpus: int) -> list[Any]:
    """One on each node. A CPU they do not ask for: a node whose CPUs are busy still has its network."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return [
        ray.remote(num_cpus=0, num_gpus=gpus)(Rank)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False))
        .remote()
        for n in nodes
    ]


def _end(ranks: Sequence[Any]) -> None:
    import ray

    for rank in ranks:
        ray.kill(rank)
