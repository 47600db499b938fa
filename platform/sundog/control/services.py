"""The services controller: anchors in Serve -> versions deployed, routes published, old ones retired.

Observes Serve and the registry, lets serving_plan decide, applies. Run twice it changes once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sundog import __version__, telemetry
from sundog.clock import Clock
from sundog.control.serving_plan import (
    ANCHOR,
    GATEWAY_APP,
    RETRY_S,
    App,
    Decision,
    Progress,
    Resolved,
    app_name,
    decide,
    route,
    service_of,
)
from sundog.control.serving_plan import digest as spec_digest
from sundog.control.snapshots import Snapshots
from sundog.errors import SundogError
from sundog.rayapi import serve_apps
from sundog.serving.gateway import Gateway
from sundog.serving.replica import Model, describe_signature
from sundog.spec import ServiceSpec
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.store import Lease, Store

HOLDER = "service"
MISSING_ROUNDS = 2
"""An anchor must be away this often in a row before its service goes."""
RETIRE_AFTER_S = 10.0
REMOTE_LOOK_S = 2.0
"""How long an alias in object storage is believed; a local one is read every round."""

log = logging.getLogger("sundog.control")


@dataclass
class Observation:
    """Serve's applications and the specs of the anchors among them."""

    apps: Mapping[str, serve_apps.AppView]
    specs: Mapping[str, ServiceSpec]
    anchors: Mapping[str, str]
    """service -> the application that is its anchor"""


class ServicesController:
    name = "services"

    def __init__(
        self,
        store: Store,
        lease: Lease,
        snapshots: Snapshots,
        root: str | None,
        gateway_address: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._lease = lease
        self._snapshots = snapshots
        self._root = root
        self._address = gateway_address
        self._clock = clock
        self._missing: dict[str, int] = {}
        self._retiring: dict[str, tuple[int, float]] = {}
        self._failed: dict[str, float] = {}
        self._specs: dict[str, ServiceSpec] = {}
        self._anchors: dict[str, str] = {}
        self._progress: dict[str, Progress] = {}
        self._resolved: dict[tuple[str, str], Resolved] = {}
        self._looked: dict[str, tuple[tuple[str, str | None], float, Resolved]] = {}
        self._stored: dict[str, Any] = {}
        self._stepped = False
        self.gateway_message = ""
        for name, (spec, state) in store.services().items():
            self._specs[name] = ServiceSpec.model_validate(spec)
            self._stored[name] = (spec, dict(state))
            self._anchors[name] = state.pop("anchor")
            self._progress[name] = Progress(**state)

    # -- one round

    def step(self) -> None:
        seen = self.observe()
        if seen is None:
            return
        self._forget(seen)
        self._specs.update(seen.specs)
        self._anchors.update(seen.anchors)
        deploys: dict[str, Any] = {}
        decisions: dict[str, Decision] = {}
        for name, spec in self._specs.items():
            decision = decide(
                spec,
                self._resolve(spec),
                _versions(seen.apps, name),
                self._progress.get(name, Progress()),
            )
            decisions[name] = decision
            if decision.deploy is not None:
                app = app_name(name, decision.deploy.version)
                deploys[app] = self._model_app(spec, decision.deploy.version)
                self._hold(spec, decision.deploy.version)
        # Whoever started control wants a gateway: it comes up beside the first replicas.
        if (self._specs or not self._stepped) and self._gateway_is_missing(seen):
            deploys[GATEWAY_APP] = gateway_app(self._address)
        if deploys:
            serve_apps.deploy(deploys)
        for name, decision in decisions.items():
            self._remember(name, decision)
        self._publish()
        self._retire(seen, decisions)
        self._retry(seen)
        self._stepped = True

    def observe(self) -> Observation | None:
        """None where Serve does not run (any more): then there is nothing to bring about."""
        apps = serve_apps.applications()
        if apps is None:
            return None
        specs, anchors = {}, {}
        for app in apps.values():
            anchor = app.deployments.get(ANCHOR)
            if anchor is None or app.status == "DELETING":
                continue
            try:
                spec = ServiceSpec.model_validate(anchor.user_config["spec"])
            except (ValidationError, KeyError, TypeError) as error:
                log.warning("anchor %s is not read: %s", app.name, error)
                continue
            specs[spec.service] = spec
            anchors[spec.service] = app.name
        gateway = apps.get(GATEWAY_APP)
        self.gateway_message = _gateway_fault(gateway)
        return Observation(apps, specs, anchors)

    def _forget(self, seen: Observation) -> None:
        for name in list(self._specs):
            if name in seen.specs or self._is_rebuilt(name, seen):
                self._missing.pop(name, None)
                continue
            self._missing[name] = self._missing.get(name, 0) + 1
            if self._missing[name] >= MISSING_ROUNDS:
                log.info("service %s: its anchor is gone, it is undeployed", name)
                del self._specs[name], self._missing[name]
                self._progress.pop(name, None)
                if self._stored.pop(name, None) is not None:
                    self._store.delete_service(self._lease, name)
                    self._store.add_event(self._lease, telemetry.SERVICE_REMOVED, name, {})

    def _is_rebuilt(self, name: str, seen: Observation) -> bool:
        """A redeployed anchor shows no deployment for a while; its application is there all along."""
        app = seen.apps.get(self._anchors.get(name, ""))
        return app is not None and app.status != "DELETING" and ANCHOR not in app.deployments

    # -- observing the registry

    def _registry(self, spec: ServiceSpec) -> Registry:
        return Registry(open_root(spec.root or self._root))

    def _resolve(self, spec: ServiceSpec) -> Resolved:
        looked = self._looked.get(spec.service)
        now = self._clock.monotonic_s()
        if looked is not None and looked[0] == (spec.model, spec.root) and now < looked[1]:
            return looked[2]
        found = self._look_up(spec)
        again_s = now + (0 if open_root(spec.root or self._root).is_local else REMOTE_LOOK_S)
        self._looked[spec.service] = ((spec.model, spec.root), again_s, found)
        return found

    def _look_up(self, spec: ServiceSpec) -> Resolved:
        try:
            version = self._registry(spec).get(spec.model)
        except SundogError as error:
            return Resolved(None, str(error))
        key = (spec.service, version.ref)
        if key not in self._resolved:
            self._resolved[key] = Resolved(
                version.version, "", version.kind, describe_signature(version.signature)
            )
        return self._resolved[key]

    def _hold(self, spec: ServiceSpec, version: str) -> None:
        self._registry(spec).hold(_model(spec), int(version), f"{HOLDER}:{spec.service}")

    # -- applying

    def _model_app(self, spec: ServiceSpec, version: str) -> Any:
        place = {
            "root": str(open_root(spec.root or self._root).url),
            "name": _model(spec),
            "version": int(version),
            "allow_code": spec.allow_code,
        }
        return model_app(spec, place)

    def _gateway_is_missing(self, seen: Observation) -> bool:
        gateway = seen.apps.get(GATEWAY_APP)
        if gateway is None:
            return True
        view = gateway.deployments.get("Gateway")
        return view is not None and (view.user_config or {}).get("address") != self._address

    def _remember(self, name: str, decision: Decision) -> None:
        before = self._progress.get(name, Progress())
        progress = decision.progress
        self._progress[name] = progress
        spec = self._specs[name].model_dump(mode="json")
        state = {
            "active": progress.active, "entries": dict(progress.entries),
            "state": progress.state, "message": progress.message,
            "anchor": self._anchors[name],
        }  # fmt: skip
        if self._stored.get(name) != (spec, state):
            self._store.put_service(self._lease, name, spec, state)
            self._stored[name] = (spec, state)
        if progress.active != before.active and progress.active is not None:
            model = f"{_model(self._specs[name])}@{progress.active}"
            number = self._store.add_revision(
                self._lease, name, model, spec, decision.why or "its new version is ready"
            )
            log.info("service %s: revision %d answers with %s", name, number, model)
            self._store.add_event(
                self._lease, telemetry.SERVICE_ROUTED, name, {"model": model, "revision": number}
            )
        if (progress.state, progress.message) != (before.state, before.message):
            log.info("service %s: %s %s", name, progress.state, progress.message)
            self._store.add_event(
                self._lease, telemetry.SERVICE_STATE, name,
                {"state": progress.state, "message": progress.message},
            )  # fmt: skip

    def _publish(self) -> None:
        services = {n: route(s, self._progress.get(n, Progress())) for n, s in self._specs.items()}
        if self._snapshots.publish(services, self._store.keys()):
            # The version is what must go on; hashes of keys have their own table.
            body = {"services": services}
            self._store.put_snapshot(self._lease, "routes", self._snapshots.version, body)

    def _retire(self, seen: Observation, decisions: Mapping[str, Decision]) -> None:
        """Delete versions that no route names any more, once every gateway knows."""
        now = self._clock.monotonic_s()
        leaving = {app_name(n, v) for n, d in decisions.items() for v in d.retire}
        leaving |= {
            app
            for app, view in seen.apps.items()
            if (owner := service_of(app)) and owner[0] not in self._specs
            and view.status != "DELETING" and "Model" in view.deployments
        }  # fmt: skip
        for app in list(self._retiring):
            if app not in leaving:
                del self._retiring[app]
        for app in leaving:
            version, since_s = self._retiring.setdefault(app, (self._snapshots.version, now))
            if self._snapshots.acknowledged(version) or now - since_s > RETIRE_AFTER_S:
                log.info("%s is no longer routed, it is removed", app)
                serve_apps.delete(app)
                self._release(app, seen.apps[app])

    def _retry(self, seen: Observation) -> None:
        """Take away what did not start and answers nothing; the next round deploys it again."""
        now = self._clock.monotonic_s()
        answering = {app_name(n, p.active) for n, p in self._progress.items() if p.active}
        failed = {
            app
            for app, view in seen.apps.items()
            if view.status == "DEPLOY_FAILED" and app not in answering
            and (app == GATEWAY_APP or "Model" in view.deployments)
        }  # fmt: skip
        self._failed = {app: self._failed.get(app, now) for app in failed}
        for app, since_s in list(self._failed.items()):
            if now - since_s > RETRY_S:
                log.info("%s did not start, it is tried again", app)
                serve_apps.delete(app)
                del self._failed[app]

    def _release(self, app: str, view: serve_apps.AppView) -> None:
        place = (view.deployments["Model"].user_config or {}).get("place")
        owner = service_of(app)
        if not place or owner is None:
            return
        try:
            registry = Registry(open_root(place["root"]))
            registry.release(place["name"], place["version"], f"{HOLDER}:{owner[0]}")
        except SundogError as error:
            log.warning("the hold of %s stays: %s", app, error)

    # -- what people ask

    def listing(self) -> list[dict[str, Any]]:
        """Every service: {service, model, state, message, version, replicas, …}."""
        out = []
        for name, spec in sorted(self._specs.items()):
            progress = self._progress.get(name, Progress())
            out.append({
                "service": name, "model": spec.model, "state": progress.state,
                "message": progress.message, "version": progress.active,
                "replicas": str(spec.replicas), "gateway": self._address,
                "gateway_message": self.gateway_message,
            })  # fmt: skip
        return out


def gateway_app(address: str) -> Any:
    from ray import serve

    config = {"address": address}
    deployment = serve.deployment(
        Gateway, name="Gateway", num_replicas=1, ray_actor_options={"num_cpus": 0},
        user_config=config, health_check_period_s=2, graceful_shutdown_timeout_s=20,
        max_constructor_retry_count=3,
    )  # fmt: skip
    return serve_apps.pinned(deployment, f"{__version__}/{address}").bind(config)


def model_app(spec: ServiceSpec, place: dict[str, Any]) -> Any:
    """One model version as a Serve application."""
    from ray import serve

    options: dict[str, Any] = {"num_cpus": spec.resources.cpus}
    if spec.resources.gpus:
        options["num_gpus"] = spec.resources.gpus
    if spec.resources.gpu:
        options["accelerator_type"] = spec.resources.gpu
    if spec.resources.memory:
        options["memory"] = spec.resources.memory
    deployment = serve.deployment(
        Model, name="Model", num_replicas=max(1, spec.replicas.low), ray_actor_options=options,
        user_config={"digest": spec_digest(spec), "place": place},
        max_ongoing_requests=64, health_check_period_s=2, graceful_shutdown_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1, max_constructor_retry_count=2,
        max_surge_percent=100,
    )  # fmt: skip
    version = f"{__version__}/{place['name']}@{place['version']}/{place['root']}/{spec.allow_code}"
    return serve_apps.pinned(deployment, version).bind(place)


def _model(spec: ServiceSpec) -> str:
    return spec.model.partition("@")[0]


def _versions(apps: Mapping[str, serve_apps.AppView], service: str) -> dict[str, App]:
    out = {}
    for name, view in apps.items():
        owner = service_of(name)
        if owner is None or owner[0] != service:
            continue
        model = view.deployments.get("Model")
        config = (model.user_config or {}) if model is not None else {}
        message = model.message if model is not None and model.message else view.message
        out[owner[1]] = App(view.status, brief(message), config.get("digest", ""))
    return out


def _gateway_fault(gateway: serve_apps.AppView | None) -> str:
    if gateway is None or gateway.status == "RUNNING":
        return ""
    view = gateway.deployments.get("Gateway")
    return brief(view.message if view is not None and view.message else gateway.message)


def brief(message: str) -> str:
    """The last error of a Serve message, without its stack trace."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    for i in range(len(lines) - 1, -1, -1):
        head, mark, rest = lines[i].partition(": ")
        if mark and head.rpartition(".")[2][:1].isupper() and " " not in head:
            return " ".join([rest, *lines[i + 1 : i + 3]])[:600]
    return (lines[-1] if lines else "")[:600]
