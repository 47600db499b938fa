"""Serve's applications: what is deployed, deploying several without waiting, deleting.

Private part of Ray Serve: the details that its REST API shows, read from the controller itself.
Decides nothing about which applications there should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from sundog.errors import ClusterError, NotFound

_TIMEOUT_S = 10


@dataclass(frozen=True)
class DeploymentView:
    status: str
    message: str
    user_config: Any
    replicas_wanted: int
    replica_ids: frozenset[str] = frozenset()
    """Of those that run."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Replica -> its node, of all that are there and do not stop."""
    moving: frozenset[str] = frozenset()
    """Replicas that leave because their node is drained."""


@dataclass(frozen=True)
class AppView:
    """One application. `status` is Serve's: DEPLOYING, RUNNING, DEPLOY_FAILED, UNHEALTHY, …"""

    name: str
    status: str
    message: str
    deployments: Mapping[str, DeploymentView] = field(default_factory=dict)


def applications() -> dict[str, AppView] | None:
    """All applications by name; None where Serve does not run.

    Raises ClusterError when Serve's controller is there and does not answer: an absent answer must
    never be read as an absent application.
    """
    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None
    try:
        details = ray.get(controller.get_serve_instance_details.remote(), timeout=_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray Serve does not answer: {error}", "try again in a moment") from None
    return {name: _app(name, app) for name, app in details["applications"].items()}


def deploy(apps: Mapping[str, Any]) -> None:
    """Hand applications (name -> bound application) to Serve and return; no HTTP route."""
    # No proxy of Serve's: the gateway replica owns the one address.
    serve.start(proxy_location="Disabled")
    serve.run_many(
        [serve.RunTarget(target=app, name=name, route_prefix=None) for name, app in apps.items()],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def pinned(deployment: Any, version: str) -> Any:
    """The deployment with a code version of ours: Serve restarts replicas only when that (or what
    they need) changes, not at every redeploy."""
    return deployment.options(_internal=True, version=version)


def delete(name: str) -> None:
    """Begin to remove an application; its replicas drain first."""
    serve.delete(name, _blocking=False)


def replica_ids(app: str, deployment: str) -> frozenset[str]:
    """The running replicas of a deployment; none where it is not there."""
    view = (applications() or {}).get(app)
    found = view.deployments.get(deployment) if view is not None else None
    return found.replica_ids if found is not None else frozenset()


def kill_replica(app: str, deployment: str) -> str:
    """Kill one running replica's process at once; returns its id. NotFound without one."""
    for replica_id in sorted(replica_ids(app, deployment)):
        name = f"SERVE_REPLICA::{app}#{deployment}#{replica_id}"
        try:
            ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE))
        except ValueError:
            continue  # it went a moment ago
        return replica_id
    raise NotFound(f"{app} has no running replica", "see `serve status`")


def _app(name: str, app: Mapping[str, Any]) -> AppView:
    return AppView(
        name,
        _word(app["status"]),
        app["message"],
        {key: _deployment(value) for key, value in app["deployments"].items()},
    )


def _deployment(details: Mapping[str, Any]) -> DeploymentView:
    running = frozenset(
        str(r["replica_id"]) for r in details["replicas"] if _word(r["state"]) == "RUNNING"
    )
    states = {str(r["replica_id"]): _word(r["state"]) for r in details["replicas"]}
    nodes = {str(r["replica_id"]): str(r.get("node_id") or "") for r in details["replicas"]}
    return DeploymentView(
        _word(details["status"]),
        details["message"],
        details["deployment_config"].get("user_config"),
        details["target_num_replicas"],
        running,
        {r: node for r, node in nodes.items() if states[r] not in ("STOPPING", "STOPPED")},
        frozenset(r for r, state in states.items() if state == "PENDING_MIGRATION"),
    )


def _word(value: Any) -> str:
    """Serve's enums are strings that print with their class."""
    return str(getattr(value, "value", value))
