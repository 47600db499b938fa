"""What to do about services, decided from one observation. Pure: no Ray, no store, no clock.

A service follows a model reference. Its new version is deployed and ready before routes move to it;
the old one goes when every gateway has the new routes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sundog.spec import ServiceSpec

GATEWAY_APP = "sundog-gateway"
ANCHOR = "Anchor"
"""The deployment that marks an application as a service's anchor; its user_config is the spec."""
READY = "RUNNING"
RETRY_S = 60.0
"""A version or gateway that did not start is tried again after this long: its cause may be cured."""
FAILED = frozenset(("DEPLOY_FAILED", "UNHEALTHY"))


@dataclass(frozen=True)
class Resolved:
    """What a reference means now: a version, or why there is none."""

    version: int | None
    fault: str = ""
    kind: str = ""
    signature: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class App:
    """What Serve has under an application's name."""

    status: str
    message: str
    digest: str


@dataclass(frozen=True)
class Progress:
    """What is remembered of a service between two rounds.

    `active` answers requests; `entries` describes every version that routes know.
    """

    active: str | None = None
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    state: str = "starting"
    message: str = ""


@dataclass(frozen=True)
class Deploy:
    service: str
    version: str
    why: str


@dataclass(frozen=True)
class Decision:
    """One service's next step: what to deploy, what to retire once `acked`, what routes say."""

    progress: Progress
    deploy: Deploy | None = None
    retire: tuple[str, ...] = ()
    why: str = ""


def app_name(service: str, version: str | int) -> str:
    return f"{service}--v{version}"


def service_of(app: str) -> tuple[str, str] | None:
    """`'digits--v3'` -> `('digits', '3')`; None for an application that is not a version's."""
    name, mark, version = app.rpartition("--v")
    return (name, version) if mark and name and version.isdigit() else None


def digest(spec: ServiceSpec) -> str:
    """Changes exactly when the replicas of a version have to change."""
    parts = spec.model_dump(mode="json", include={"replicas", "resources", "allow_code", "root"})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def decide(
    spec: ServiceSpec, resolved: Resolved, apps: Mapping[str, App], before: Progress
) -> Decision:
    """The next step of one service. `apps`: its version applications, by version."""
    want = digest(spec)
    entries = dict(before.entries)
    if resolved.version is None:
        active = before.active if before.active in apps else None
        state = "ready" if active is not None else "failed"
        return Decision(
            Progress(active, _only(entries, apps), state, resolved.fault), why=resolved.fault
        )
    target = str(resolved.version)
    app = apps.get(target)
    deploy = None
    if app is None or (app.digest != want and app.status != "DELETING"):
        why = f"{spec.model} is version {target}" if app is None else "its spec changed"
        deploy = Deploy(spec.service, target, why)
    entries[target] = {
        "app": app_name(spec.service, target),
        "deployment": "Model",
        "kind": resolved.kind,
        "signature": resolved.signature,
    }
    active, state, message = before.active, before.state, ""
    if app is not None and app.status == READY and app.digest == want:
        active, state = target, "ready"
    elif app is not None and app.status in FAILED:
        message = f"version {target} does not start: {app.message}"
        state = "ready" if active not in (None, target) and active in apps else "failed"
    elif active is None or active not in apps:
        active, state = target if active == target else None, "starting"
        message = before.message  # of the attempt before this one, if there was one
    else:
        state = "ready" if active == target else "rolling"
        message = "" if active == target else f"version {target} is starting"
    keep = {target, active}
    retire = tuple(v for v in apps if v not in keep and apps[v].status != "DELETING")
    entries = {v: e for v, e in entries.items() if v in keep}
    return Decision(
        Progress(active, entries, state, message), deploy, retire, deploy.why if deploy else message
    )


def _only(entries: Mapping[str, Any], apps: Mapping[str, App]) -> dict[str, Any]:
    return {v: e for v, e in entries.items() if v in apps}


def route(spec: ServiceSpec, progress: Progress) -> dict[str, Any]:
    """What gateways are told about a service."""
    return {
        "service": spec.service,
        "model": spec.model,
        "state": progress.state,
        "message": progress.message,
        "versions": {v: dict(e) for v, e in progress.entries.items()},
        "weights": {progress.active: 1.0} if progress.active is not None else {},
        "deadline_s": spec.deadline,
        "queue": spec.queue,
        "batch": spec.batch,
        "max_body": spec.max_body,
        "idempotent": spec.idempotent,
    }
