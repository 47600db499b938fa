"""Draining a node through Ray, and which nodes Ray knows. Private part of Ray: the GCS client.

Works without `ray.init()`: an agent beside a raylet must not be a driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sundog.clock import WALL, Clock
from sundog.errors import ClusterError


@dataclass(frozen=True, slots=True)
class RayNode:
    """`instance_id` is the cloud's name of it; `status` RUNNING, IDLE, DRAINING or DEAD.

    `used` is the share of its CPUs or GPUs, whichever is higher, that tasks and actors hold; None
    for a node that has neither. `idle_s` is how long nothing has run there.
    """

    node_id: str
    instance_id: str
    node_type: str
    status: str
    used: float | None = None
    idle_s: float = 0.0


class Drains(Protocol):
    """Who knows Ray's nodes and drains them. ClusterError."""

    def nodes(self) -> list[RayNode]: ...

    def drain(self, node_id: str, deadline_s: float | None, why: str) -> bool: ...


class Gcs:
    """One connection to `address` (host:port). ClusterError whatever goes wrong inside Ray."""

    def __init__(self, address: str, clock: Clock = WALL) -> None:
        self.address, self._clock = address, clock
        self._client: Any = None

    def nodes(self) -> list[RayNode]:
        """Every live node of the cluster."""
        from ray.autoscaler.v2.sdk import get_cluster_resource_state
        from ray.core.generated.autoscaler_pb2 import NodeStatus

        state = self._call(lambda client: get_cluster_resource_state(client))
        return [
            RayNode(
                n.node_id.hex(), n.instance_id, n.ray_node_type_name, NodeStatus.Name(n.status),
                _used(n.total_resources, n.available_resources), n.idle_duration_ms / 1000,
            )
            for n in state.node_states
            if NodeStatus.Name(n.status) != "DEAD"
        ]  # fmt: skip

    def drain(self, node_id: str, deadline_s: float | None, why: str) -> bool:
        """Ask for a preemption drain of this node; whether Ray took it.

        `deadline_s` is Unix time. Ray takes no new work there, tells Train and Serve, and lets the
        node go when it is idle; it kills nothing at the deadline.
        """
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        if len(node_id) != 56:
            # A binary id is silently taken for nil, and the drain for done.
            raise ClusterError(f"{node_id!r} is not a node id in hexadecimal")
        deadline_ms = 0 if deadline_s is None else int(deadline_s * 1000)
        accepted, refused = self._call(
            lambda client: client.drain_node(
                node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), why, deadline_ms
            )
        )
        if not accepted and "already" not in str(refused).lower():
            raise ClusterError(f"Ray refused to drain {node_id}: {refused}")
        return bool(accepted)

    def _call(self, what: Any) -> Any:
        try:
            if self._client is None:
                from ray._raylet import GcsClient  # type: ignore[attr-defined]

                self._client = GcsClient(address=self.address)
            return what(self._client)
        except ClusterError:
            raise
        except Exception as error:
            self._client = None
            raise ClusterError(f"the cluster at {self.address} does not answer: {error}") from error


def _used(total: Mapping[str, float], available: Mapping[str, float]) -> float | None:
    shares = [1 - available.get(k, 0.0) / total[k] for k in ("CPU", "GPU") if total.get(k, 0) > 0]
    return max(shares, default=None)


def head_address() -> str:
    """host:port of the GCS of the Ray that runs on this machine. ClusterError if none does."""
    from ray._private.services import find_bootstrap_address

    found = find_bootstrap_address(None)
    if not found:
        raise ClusterError("no Ray runs on this machine", "start it: ray start --head")
    return str(found)
