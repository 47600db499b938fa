"""Finding, starting and asking control, from any process that is connected to the cluster."""

from __future__ import annotations

from typing import Any

import ray

from sundog.errors import ControlUnavailable, SundogError

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
            # Spot nodes come and go, and a store that is a file is on the head's disk.
            resources={"node:__internal_head__": 0.001},
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

    def create_key(
        self,
        name: str,
        *,
        scopes: list[str] | None = None,
        rate: float | None = None,
        burst: float | None = None,
        quota: int | None = None,
        quota_tokens: int | None = None,
        ttl_s: float | None = None,
    ) -> dict[str, Any]:
        """{key, key_id, …}. The key is returned this once; gateways ask for keys from then on.

        `scopes`: services, `*` patterns allowed; `rate`: requests per second; `quota`,
        `quota_tokens`: per day; `ttl_s`: lifetime.
        """
        return self._ask(
            "keys", verb="create", name=name, scopes=scopes, rate=rate, burst=burst,
            quota=quota, quota_tokens=quota_tokens, ttl_s=ttl_s,
        )  # fmt: skip

    def keys(self) -> list[dict[str, Any]]:
        return self._ask("keys", verb="listing")

    def rotate_key(self, key_id: str, overlap_s: float = 24 * 3600.0) -> dict[str, Any]:
        return self._ask("keys", verb="rotate", key_id=key_id, overlap_s=overlap_s)

    def revoke_key(self, key_id: str) -> None:
        self._ask("keys", verb="revoke", key_id=key_id)

    def delete_key(self, key_id: str) -> None:
        """Forget a revoked or expired key; with the last one gone, gateways ask for none."""
        self._ask("keys", verb="delete", key_id=key_id)

    def rollout(self, service: str) -> dict[str, Any] | None:
        """The last rollout: phase, reason, weights, evidence, differences, history."""
        return self._ask("rollouts", verb="rollout", service=service)

    def command_rollout(self, service: str, command: str, by: str = "") -> dict[str, Any]:
        """pause | resume | promote | abort."""
        return self._ask("rollouts", verb="command", service=service, command=command, by=by)

    def start_rollout(self, service: str) -> dict[str, Any]:
        """Try again the version that was rolled back."""
        return self._ask("rollouts", verb="start", service=service)

    def rollback(self, service: str, version: str | None = None, by: str = "") -> dict[str, Any]:
        return self._ask("rollouts", verb="rollback", service=service, version=version, by=by)

    def _ask(self, method: str, **arguments: Any) -> Any:
        try:
            actor = ray.get_actor(ACTOR, namespace=NAMESPACE)
            return ray.get(getattr(actor, method).remote(**arguments), timeout=self._timeout_s)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SundogError):
                raise error.cause from None
            raise
        except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise ControlUnavailable(
                f"control does not answer: {error}",
                "it starts with the first `serve deploy`; what is served goes on without it",
            ) from None
