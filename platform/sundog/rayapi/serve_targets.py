"""Which replicas of a deployment Serve has ready, as it changes, with what they say of themselves.

Private part of Ray Serve: the controller's long poll on deployment targets. Carries no request.
The public way that needs none of this is `serve.get_deployment_handle` (serving/links.HandleLink).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.serve._private.common import DeploymentID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.long_poll import LongPollNamespace

RETRY_S = 0.5


@dataclass(frozen=True)
class Replica:
    """A ready replica. `metadata` is what its `record_replica_metadata` returned."""

    replica_id: str
    node_id: str
    node_ip: str
    metadata: dict[str, Any]


async def watch(app: str, deployment: str, on_change: Callable[[list[Replica]], None]) -> None:
    """Call `on_change` with all ready replicas, now and whenever they change, until cancelled.

    While the Serve controller is away the last answer stands.
    """
    key = (LongPollNamespace.DEPLOYMENT_TARGETS, DeploymentID(name=deployment, app_name=app))
    seen = -1
    controller: Any = None
    while True:
        try:
            if controller is None:
                controller = await asyncio.to_thread(_controller)
            answer = await controller.listen_for_change.remote({key: seen})
        except (ray.exceptions.RayError, ValueError):
            controller, seen = None, -1
            await asyncio.sleep(RETRY_S)
            continue
        update = answer.get(key) if isinstance(answer, dict) else None
        if update is not None:
            seen = update.snapshot_id
            on_change([_replica(info) for info in update.object_snapshot.running_replicas])


def _controller() -> Any:
    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


def _replica(info: Any) -> Replica:
    return Replica(
        info.replica_id.unique_id, info.node_id or "", info.node_ip or "", info.replica_metadata
    )
