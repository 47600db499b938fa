"""How many replicas of a deployment Serve has ready, by its public API alone.

For gateways that ask over Serve's handle and need to know nothing else of replicas (serve_targets).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from sundog.rayapi.serve_targets import Replica

LOOK_S = 1.0
_READY = ("RUNNING", "PENDING_MIGRATION")


async def watch(app: str, deployment: str, on_change: Callable[[list[Replica]], None]) -> None:
    """As serve_targets.watch, of replicas that say nothing of themselves.

    While Serve does not know the application, or is away, the last answer stands.
    """
    seen: int | None = None
    while True:
        try:
            count = _ready(await asyncio.to_thread(serve.status), app, deployment)
        except (ray.exceptions.RayError, RayServeException, TimeoutError, ValueError):
            count = None
        if count is not None and count != seen:
            seen = count
            on_change([Replica(f"{app}#{n}", "", "", {}) for n in range(count)])
        await asyncio.sleep(LOOK_S)


def _ready(status: Any, app: str, deployment: str) -> int | None:
    found = status.applications.get(app)
    view = found.deployments.get(deployment) if found is not None else None
    if view is None:
        return None
    return sum(n for state, n in view.replica_states.items() if _word(state) in _READY)


def _word(state: Any) -> str:
    return str(getattr(state, "value", state))
