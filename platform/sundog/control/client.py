"""Finding, starting and asking control, from any process that is connected to the cluster."""

from __future__ import annotations

from typing import Any

import ray

from sundog.errors import ControlUnavailable

ACTOR = "sundog-control"
NAMESPACE = "sundog"
_TIMEOUT_S = 30


def ensure_control() -> Any:
    """The control actor, started if it does not run yet; exactly one per cluster."""
    from sundog.control.actor import Control

    return (
        ray.remote(Control)
        .options(
            name=ACTOR,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
            max_concurrency=1000,
        )
        .remote()
    )


class ControlClient:
    """Calls over Ray. The CLI needs none of this: the gateway answers GET /sundog/services."""

    def __init__(self, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def deploy(self, spec: dict[str, Any]) -> None:
        """Deploy or change one service; returns when Serve has taken the anchor, not when ready."""
        from sundog.control.anchor import service
        from sundog.rayapi import serve_apps

        serve_apps.deploy({str(spec["service"]): service(spec)})
        ray.get(ensure_control().poke.remote(), timeout=self._timeout_s)

    def undeploy(self, name: str) -> None:
        from sundog.rayapi import serve_apps

        serve_apps.delete(name)
        self._ask("poke")

    def services(self) -> list[dict[str, Any]]:
        return self._ask("services")

    def gateways(self) -> list[dict[str, Any]]:
        return self._ask("gateways")

    def status(self) -> dict[str, Any]:
        """{state: leading | standby | starting | failed, message, pid}."""
        return self._ask("status")

    def _ask(self, method: str) -> Any:
        try:
            actor = ray.get_actor(ACTOR, namespace=NAMESPACE)
            return ray.get(getattr(actor, method).remote(), timeout=self._timeout_s)
        except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise ControlUnavailable(
                f"control does not answer: {error}",
                "it starts with the first `serve deploy`; what is served goes on without it",
            ) from None
