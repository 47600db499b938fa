"""What to do about services, decided from one observation. Pure: no Ray, no store, no clock.

A service follows a model reference. Its new version is deployed and ready before routes move to it;
the old one goes when every gateway has the new routes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
    model: str = ""


@dataclass(frozen=True)
class App:
    """What Serve has under an application's name."""

    status: str
    message: str
    digest: str
    replicas: int | None = None
    replica_ids: frozenset[str] = frozenset()
    """Of those that run."""
    made_of: Mapping[str, Any] | None = None
    """What `made_of` said when it was deployed; None for an earlier Sundog's."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Replica -> node, of all that are there and were not told to stop."""
    moving: frozenset[str] = frozenset()
    """Replicas whose node is drained."""


@dataclass(frozen=True)
class Progress:
    """What is remembered of a service between two rounds.

    `active` answers requests; `entries` describes every version that routes know. `traffic` is what
    a running rollout asks of the routes; `held` {version, instead_of, why, model} is a version that
    answers although the spec names another one of that model, which was rolled back.
    """

    active: str | None = None
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    state: str = "starting"
    message: str = ""
    traffic: Mapping[str, Any] | None = None
    held: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Rolling:
    """A rollout under way, as the plan needs it: who is involved, what routes shall say."""

    baseline: str
    candidate: str
    entry: Mapping[str, Any]
    """of the candidate"""
    reason: str
    traffic: Mapping[str, Any]
    """{weights, mirror, salt, sticky, labels, feedback}"""


@dataclass(frozen=True)
class Deploy:
    """A version's application as it shall be. `resizes`: nothing but its number changes."""

    service: str
    version: str
    why: str
    replicas: int = 1
    made_of: Mapping[str, Any] = field(default_factory=dict)
    resizes: bool = False


@dataclass(frozen=True)
class Decision:
    """One service's next step: what to deploy, what to retire once `acked`, what routes say."""

    progress: Progress
    deploys: tuple[Deploy, ...] = ()
    retire: tuple[str, ...] = ()
    why: str = ""

    @property
    def deploy(self) -> Deploy | None:
        return self.deploys[0] if self.deploys else None


def app_name(service: str, version: str | int) -> str:
    return f"{service}--v{version}"


def service_of(app: str) -> tuple[str, str] | None:
    """`'digits--v3'` -> `('digits', '3')`; None for an application that is not a version's."""
    name, mark, version = app.rpartition("--v")
    return (name, version) if mark and name and version.isdigit() else None


def digest(spec: ServiceSpec) -> str:
    """Changes exactly when the replicas of a version have to change; their number is apart."""
    parts = spec.model_dump(mode="json", include={"resources", "allow_code", "root"})
    parts["model"] = spec.model.partition("@")[0]
    parts["environment"] = environment_digest(spec)
    if spec.process is not None:
        parts["process"] = spec.process
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def made_of(spec: ServiceSpec, version: str | int) -> dict[str, Any]:
    """What a version's replicas are made from: the parts of a spec whose change restarts them."""
    parts = {"resources", "allow_code", "root", "env", "secrets", "requirements", "process"}
    name = spec.model.partition("@")[0]
    return spec.model_dump(mode="json", include=parts) | {"model": f"{name}@{version}"}


def with_parts(spec: ServiceSpec, parts: Mapping[str, Any]) -> ServiceSpec:
    """The spec with replicas made from `parts`, as `made_of` said them."""
    unsaid = {"process": None}  # by an earlier Sundog
    return ServiceSpec.model_validate({**spec.model_dump(mode="json"), **unsaid, **parts})


def environment_digest(spec: ServiceSpec) -> str:
    """Of what a replica's process finds around it."""
    parts = spec.model_dump(mode="json", include={"env", "secrets", "requirements"})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def entry_of(service: str, version: str, resolved: Resolved) -> dict[str, Any]:
    """What gateways need to know of a version."""
    return {
        "app": app_name(service, version),
        "deployment": "Model",
        "kind": resolved.kind,
        "signature": resolved.signature,
        "model": resolved.model,
    }


def unheld(resolved: Resolved, before: Progress) -> Progress:
    """Without the hold, once the spec names another version or the held one itself answers."""
    held = before.held
    if held is None or resolved.version is None:
        return before
    entry = before.entries.get(held["version"], {})
    model = held.get("model") or entry.get("model") or resolved.model
    if resolved.model and model != resolved.model:
        return replace(before, held=None)  # numbers of another model mean nothing here
    target = str(resolved.version)
    arrived = target == held["version"] and before.active == target
    if arrived or target not in (held["version"], held["instead_of"]):
        return replace(before, held=None)
    return before


def decide(
    spec: ServiceSpec,
    resolved: Resolved,
    apps: Mapping[str, App],
    before: Progress,
    keep: Iterable[str] = (),
    counts: Mapping[str, int] | None = None,
) -> Decision:
    """The next step of one service. `apps`: its version applications, by version.

    `keep`: versions that stay although no request goes to them; `counts`: replicas by version,
    where it is not the least that the spec allows.
    """
    want = digest(spec)
    entries = dict(before.entries)
    if resolved.version is None:
        active = before.active if before.active in apps else None
        state = "ready" if active is not None else "failed"
        return Decision(
            Progress(active, _only(entries, apps), state, resolved.fault, held=before.held),
            _resize(spec, active, apps, counts),
            why=resolved.fault,
        )
    target = str(resolved.version)
    app = apps.get(target)
    deploy = _deploy(spec, target, apps, counts, f"{spec.model} is version {target}")
    entry = entry_of(spec.service, target, resolved)
    arrived = app is not None and app.status == READY and app.digest == want
    # Another model's version of the same number, or one that takes something else: callers keep to the
    # old one until it is there.
    known = {**entry, **entries.get(target, {})}
    if arrived or (known["model"], known["signature"]) == (entry["model"], entry["signature"]):
        entries[target] = entry
    active, state, message = before.active, before.state, ""
    if arrived:
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
    if not message and state == "ready" and before.held is not None:
        message = before.held["why"]
    if active != target:
        deploy += _resize(spec, active, apps, counts)
    kept = {target, active, *(v for v in keep if v in apps)}
    retire = tuple(v for v in apps if v not in kept and apps[v].status != "DELETING")
    entries = {v: e for v, e in entries.items() if v in kept}
    return Decision(
        Progress(active, entries, state, message, held=before.held), deploy, retire,
        deploy[0].why if deploy else message,
    )  # fmt: skip


def decide_rolling(
    spec: ServiceSpec,
    rolling: Rolling,
    apps: Mapping[str, App],
    before: Progress,
    counts: Mapping[str, int] | None = None,
) -> Decision:
    """The next step while a rollout is under way: both versions are there, routes share traffic.

    The running version's replicas follow the load and are not touched by a changed spec before the
    outcome.
    """
    base, new = rolling.baseline, rolling.candidate
    # Neither sleeps before the outcome: what is not there can neither be ready nor be compared.
    counts = {v: max(1, count) for v, count in (counts or {}).items()}
    deploys = _deploy(spec, new, apps, counts, f"{spec.model}: version {new} comes by rollout")
    if base not in apps:
        deploys += _deploy(spec, base, apps, counts, f"version {base} answers until the outcome")
    else:
        there = apps[base].replicas or 0
        if base in counts and not rolling.traffic["weights"].get(base):
            counts[base] = max(counts[base], there)  # a standby has room for everybody's return
        deploys += _resize(spec, base, apps, counts)
    entries = {v: e for v, e in before.entries.items() if v in (base, new)}
    entries[new] = rolling.entry
    active = base if base in apps or before.active == base else None
    retire = tuple(v for v in apps if v not in (base, new) and apps[v].status != "DELETING")
    progress = Progress(
        active, entries, "rolling" if active else "starting", rolling.reason, rolling.traffic
    )
    return Decision(progress, deploys, retire, rolling.reason)


def _deploy(
    spec: ServiceSpec,
    version: str,
    apps: Mapping[str, App],
    counts: Mapping[str, int] | None,
    why: str,
) -> tuple[Deploy, ...]:
    app = apps.get(version)
    count = (counts or {}).get(version, max(1, spec.replicas.low))
    if app is not None and app.status == "DELETING":
        return ()
    parts = made_of(spec, version)
    if app is not None and app.digest != digest(spec):
        return (Deploy(spec.service, version, "its spec changed", count, parts),)
    if app is not None:
        return _resize(spec, version, apps, {version: count})
    return (Deploy(spec.service, version, why, count, parts),)


def _resize(
    spec: ServiceSpec,
    version: str | None,
    apps: Mapping[str, App],
    counts: Mapping[str, int] | None,
) -> tuple[Deploy, ...]:
    """Another number of the replicas that are there, made as they were made."""
    app, count = apps.get(version or ""), (counts or {}).get(version or "")
    if app is None or version is None or app.status == "DELETING":
        return ()
    if count is None or app.replicas in (None, count):
        return ()
    parts = app.made_of
    if parts is None and app.digest == digest(spec):
        parts = made_of(spec, version)
    if parts is None:
        return ()  # an earlier Sundog's, and the spec has changed: more of them cannot be made
    why = f"{count} replicas instead of {app.replicas}"
    return (Deploy(spec.service, version, why, count, parts, resizes=True),)


def _only(entries: Mapping[str, Any], apps: Mapping[str, App]) -> dict[str, Any]:
    return {v: e for v, e in entries.items() if v in apps}


def route(spec: ServiceSpec, progress: Progress) -> dict[str, Any]:
    """What gateways are told about a service."""
    alone = {progress.active: 1.0} if progress.active is not None else {}
    traffic = progress.traffic or {"weights": alone}
    return {
        "service": spec.service,
        "model": spec.model,
        "state": progress.state,
        "message": progress.message,
        "versions": {v: dict(e) for v, e in progress.entries.items()},
        "version": progress.active,
        "may_sleep": spec.replicas.low == 0,
        **traffic,
        "feedback": "feedback" in spec.rollout.guards,
        "deadline_s": spec.deadline,
        "hold_s": spec.hold,
        "slo_s": spec.slo.whole_s,
        "first_s": spec.slo.first,
        "queue": spec.queue,
        "batch": spec.batch,
        "max_body": spec.max_body,
        "idempotent": spec.idempotent,
        "capture": spec.capture.model_dump(mode="json") | {"root": spec.root},
    }
