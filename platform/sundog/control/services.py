"""The services controller: anchors in Serve -> versions deployed, routes published, old ones retired.

Observes Serve and the registry, lets serving_plan decide, applies. Run twice it changes once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pydantic import ValidationError

from sundog import telemetry
from sundog.clock import Clock
from sundog.control.applications import (
    GatewayPlace,
    gateway_app,
    gateway_fault,
    gateway_is_missing,
    model_app,
    model_name,
)
from sundog.control.applications import versions_of as _versions
from sundog.control.faults import Faults
from sundog.control.leavers import Leavers
from sundog.control.observation import Observation, observe
from sundog.control.rollout import Record, Rollouts
from sundog.control.scaling import Scaler
from sundog.control.serving_plan import (
    GATEWAY_APP,
    App,
    Decision,
    Progress,
    Resolved,
    app_name,
    decide,
    decide_rolling,
    digest,
    entry_of,
    made_of,
    route,
    service_of,
    unheld,
    with_parts,
)
from sundog.control.snapshots import Snapshots
from sundog.control.transition import (
    outcome,
    pinned,
    previous_version,
    progress_of,
    rolling_of,
    share_ahead,
    starts_rollout,
    stays,
    wanted,
    with_fault,
)
from sundog.control.versions import Versions
from sundog.errors import Conflict, NotFound, ServiceError
from sundog.rayapi import serve_apps
from sundog.rayapi.cluster import labels_of_nodes
from sundog.serving.places import fitting
from sundog.serving.rollout_facts import Command
from sundog.spec import ServiceSpec
from sundog.store import Lease, Store

MISSING_ROUNDS = 2
"""An anchor must be away this often in a row before its service goes."""

log = logging.getLogger("sundog.control")


class ServicesController:
    name = "services"

    def __init__(
        self,
        store: Store,
        lease: Lease,
        snapshots: Snapshots,
        rollouts: Rollouts,
        scaler: Scaler,
        root: str | None,
        gateway: GatewayPlace,
        clock: Clock,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._lease = lease
        self._snapshots = snapshots
        self._rollouts = rollouts
        self._scaler = scaler
        # Commands come from other threads and change what a round reads.
        self._lock = threading.RLock()
        self._models = Versions(root, clock)
        self._leavers = Leavers(snapshots, self._models, clock)
        self._clock = clock
        self._missing: dict[str, int] = {}
        self._specs: dict[str, ServiceSpec] = {}
        self._anchors: dict[str, str] = {}
        self._progress: dict[str, Progress] = {}
        self._stored: dict[str, Any] = {}
        self._stepped = False
        self.gateway_message = ""
        self._faults = Faults(clock)
        for name, (spec, state) in store.services().items():
            self._stored[name] = (spec, dict(state))
            self._anchors[name] = state.pop("anchor")
            self._progress[name] = progress_of(state)
            try:
                self._specs[name] = ServiceSpec.model_validate(spec)
            except ValidationError as error:
                # Its anchor says the present one in the first round.
                log.warning("the stored spec of %s is left aside: %s", name, error)

    # -- one round

    def step(self) -> None:
        seen = observe(self._anchors)
        if seen is not None:
            self.gateway_message = gateway_fault(seen.apps.get(GATEWAY_APP))
            with self._lock:
                self._step(seen)

    def _step(self, seen: Observation) -> None:
        self._forget(seen)
        self._specs.update(seen.specs)
        self._anchors.update(seen.anchors)
        deploys: dict[str, Any] = {}
        decisions: dict[str, Decision] = {}
        for name, spec in self._specs.items():
            with self._faults.apart(name) as may:
                if may:
                    decision = self._decide(spec, _versions(seen.apps, name))
                    deploys |= self._made(spec, decision)
                    decisions[name] = decision
        # Whoever started control wants a gateway: it comes up beside the first replicas.
        count = fitting(self._gateway.nodes, labels_of_nodes())
        missing = gateway_is_missing(seen.apps, self._gateway, count)
        if missing and (self._specs or not self._stepped):
            deploys[GATEWAY_APP] = gateway_app(self._gateway, count)
        self._deploy(deploys)
        for name, decision in decisions.items():
            with self._faults.apart(name) as may:
                if may:
                    self._remember(name, decision)
                    self._close(name)
        self._publish()
        self._sweep(seen, decisions)
        self._stepped = True

    def _made(self, spec: ServiceSpec, decision: Decision) -> dict[str, Any]:
        """The applications that a decision deploys, their versions held in the registry."""
        made = {}
        for one in decision.deploys:
            parts = with_parts(spec, one.made_of)
            if not one.resizes:
                self._models.hold(parts, one.version)
            place = self._models.place(parts, one.version)
            made[app_name(spec.service, one.version)] = model_app(parts, place, one.replicas)
        return made

    def _deploy(self, apps: dict[str, Any]) -> None:
        """All at once; one by one where Serve refuses any of them."""
        if not apps:
            return
        try:
            serve_apps.deploy(apps)
        except Exception:
            if len(apps) == 1 and GATEWAY_APP in apps:
                raise
            log.exception("Serve refuses an application")
            for app, bound in apps.items():
                with self._faults.apart((service_of(app) or (app,))[0]):
                    serve_apps.deploy({app: bound})

    def _decide(self, spec: ServiceSpec, apps: Mapping[str, App]) -> Decision:
        """One service's next step; a rollout's new state is stored on the way."""
        name = spec.service
        resolved = self._models.resolve(spec)
        progress = unheld(resolved, self._progress.get(name, Progress()))
        resolved, fault = self._held(spec, resolved, progress), ""
        record = self._rollouts.live(name)
        if record is None and starts_rollout(spec, resolved, progress):
            resolved, fault, record = self._begin(spec, resolved, progress, apps)
        waits = wanted(record, resolved) if record is not None else ""
        spec = pinned(spec, record)
        measured = self._models.profile(spec, progress.active)
        counts = self._scaler.counts(spec, apps, measured, awake=record is not None)
        if record is not None:
            if waits == record.plan.baseline and not record.ended:
                self._rollouts.abort(record, f"the service names version {waits} again")
            said = self._rollouts.step(record, apps, digest(spec))
            if not record.ended:
                rolling = rolling_of(record, said, waits)
                weights = (progress.traffic or {}).get("weights") or {rolling.baseline: 1.0}
                counts = self._scaler.prepare(
                    spec, counts, weights, rolling.candidate, share_ahead(record)
                )
                return decide_rolling(spec, rolling, apps, progress, counts)
            progress, resolved = outcome(record, progress, resolved)
        return with_fault(
            decide(spec, resolved, apps, progress, self._rollouts.standby(name), counts), fault
        )

    def _held(self, spec: ServiceSpec, resolved: Resolved, progress: Progress) -> Resolved:
        held = progress.held
        if held is None or str(resolved.version) == held["version"]:
            return resolved
        return self._models.look_up(spec, f"{model_name(spec)}@{held['version']}")

    def _begin(
        self, spec: ServiceSpec, resolved: Resolved, progress: Progress, apps: Mapping[str, App]
    ) -> tuple[Resolved, str, Record | None]:
        """A rollout to the version that the spec names now, or why the running one stays."""
        running, fault = stays(spec, resolved, progress, apps)
        if running is not None:
            return running, fault, None
        assert progress.active is not None
        record = self._rollouts.begin(
            spec.service, model_name(spec), spec.rollout, progress.active, str(resolved.version),
            entry_of(spec.service, str(resolved.version), resolved),
            made_of(spec, str(resolved.version)),
        )  # fmt: skip
        return resolved, "", record

    def _close(self, name: str) -> None:
        """The outcome is stored with the service: the rollout is over, and aliases follow."""
        record = self._rollouts.live(name)
        if record is None or not record.ended:
            return
        spec = self._specs[name]
        if record.state.phase != "promoted":
            self._models.follow_alias(spec, record.plan.candidate, record.plan.baseline)
        self._rollouts.applied(record)

    def _sweep(self, seen: Observation, decisions: Mapping[str, Decision]) -> None:
        unrouted = {app_name(n, v) for n, decision in decisions.items() for v in decision.retire}
        self._leavers.retire(seen.apps, unrouted, {*self._specs, *self._stored})
        active = {app_name(n, p.active) for n, p in self._progress.items() if p.active}
        self._leavers.retry(seen.apps, active)

    def _forget(self, seen: Observation) -> None:
        for name in list(self._specs):
            if name in seen.specs or seen.is_rebuilt(self._anchors.get(name, "")):
                self._missing.pop(name, None)
                continue
            self._missing[name] = self._missing.get(name, 0) + 1
            if self._missing[name] >= MISSING_ROUNDS:
                log.info("service %s: its anchor is gone, it is undeployed", name)
                self._rollouts.forget(name)
                self._scaler.forget(name)
                self._faults.forget(name)
                entries = self._progress.get(name, Progress()).entries
                self._models.release_all(self._specs[name], entries)
                del self._specs[name], self._missing[name]
                self._progress.pop(name, None)
                if self._stored.pop(name, None) is not None:
                    self._store.delete_service(self._lease, name)
                    self._store.add_event(self._lease, telemetry.SERVICE_REMOVED, name, {})

    # -- applying

    def _keep(self, name: str, progress: Progress) -> None:
        """Into the store, if it is new."""
        self._progress[name] = progress
        spec = self._specs[name].model_dump(mode="json")
        state = {**asdict(progress), "anchor": self._anchors[name]}
        if self._stored.get(name) != (spec, state):
            self._store.put_service(self._lease, name, spec, state)
            self._stored[name] = (spec, state)

    def _remember(self, name: str, decision: Decision) -> None:
        before = self._progress.get(name, Progress())
        progress, spec = decision.progress, self._specs[name].model_dump(mode="json")
        self._keep(name, progress)
        if progress.active != before.active and progress.active is not None:
            model = f"{model_name(self._specs[name])}@{progress.active}"
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
        services = {}
        for name, spec in self._specs.items():
            progress = self._progress.get(name, Progress())
            said = self._faults.message(name, progress.message)
            services[name] = route(spec, replace(progress, message=said))
        if self._snapshots.publish(services, self._store.keys()):
            # The version is what must go on; hashes of keys have their own table.
            body = {"services": services}
            self._store.put_snapshot(self._lease, "routes", self._snapshots.version, body)

    # -- what people ask

    def rollout(self, service: str) -> dict[str, Any] | None:
        """The last rollout's document; None before the first. NotFound."""
        with self._lock:
            self._spec(service)
            record = self._rollouts.last(service)
            return record.document() if record is not None else None

    def command(self, service: str, command: Command, by: str) -> dict[str, Any]:
        """pause, resume, promote or abort the running rollout; its document."""
        with self._lock:
            self._spec(service)
            return self._rollouts.command(service, command, by).document()

    def start(self, service: str) -> dict[str, Any]:
        """Try again what was rolled back. Conflict where nothing was."""
        with self._lock:
            self._spec(service)
            progress = self._progress.get(service, Progress())
            held = progress.held
            if held is None or self._rollouts.live(service) is not None:
                raise Conflict(
                    f"no version of {service!r} waits",
                    "deploy another version, or move the alias to it: sundog models alias",
                )
            self._keep(service, replace(progress, held=None))
            return {"service": service, "candidate": held["instead_of"]}

    def rollback(self, service: str, version: str | None, by: str) -> dict[str, Any]:
        """Back to a version at once, without a rollout. NotFound, Conflict, ServiceError."""
        with self._lock:
            spec, record = self._spec(service), self._rollouts.live(service)
            running = record if record is not None and not record.ended else None
            if running is not None and version in (None, running.plan.baseline):
                self._rollouts.command(service, "abort", by)
                return {"service": service, "version": running.plan.baseline}
            progress = self._progress.get(service, Progress())
            target = self._way_back(spec, progress, version)
            if running is not None:
                self._rollouts.command(service, "abort", by)
                self._close(service)
            now = self._models.resolve(spec).version
            why = f"rolled back from version {progress.active} to {target} by {by}"
            left, model = str(now or progress.active), model_name(spec)
            held = {"version": target, "instead_of": left, "why": why, "model": model}
            self._keep(service, replace(progress, held=held))
            self._models.follow_alias(spec, left, target)
            news = {"model": model, "baseline": target, "candidate": left, "reason": why}
            self._rollouts.returned(service, spec.rollout, news)
            return {"service": service, "version": target, "from": progress.active}

    def _way_back(self, spec: ServiceSpec, progress: Progress, version: str | None) -> str:
        """The version to return to, looked at before anything changes."""
        model = model_name(spec)
        target = version or previous_version(
            self._store.revisions(spec.service), model, progress.active
        )
        if target is None or target == progress.active:
            raise ServiceError(
                f"{spec.service} has no earlier version" if target is None
                else f"{spec.service} answers with version {target} already",
                "name another one: sundog rollback SERVICE VERSION; "
                f"`sundog models show {model}` lists them",
            )  # fmt: skip
        found = self._models.look_up(spec, f"{model}@{target}")
        if found.version is None:
            raise NotFound(found.fault, "`sundog models list` shows what there is")
        _, fault = stays(spec, found, progress, None)
        if fault:
            raise Conflict(fault, "callers would break; deploy it as a service of its own")
        return target

    def _spec(self, service: str) -> ServiceSpec:
        spec = self._specs.get(service)
        if spec is None:
            known = ", ".join(sorted(self._specs)) or "none"
            raise NotFound(f"no deployed service is called {service!r}", f"deployed: {known}")
        return spec

    def listing(self) -> list[dict[str, Any]]:
        """Every service: {service, model, state, message, version, replicas, …}."""
        out = []
        for name, spec in sorted(self._specs.items()):
            progress = self._progress.get(name, Progress())
            wanted, why = self._scaler.reason(name, progress.active)
            out.append({
                "wanted": wanted, "scaling": why,
                "startup_s": self._scaler.startup_s(name, progress.active),
                "service": name, "model": spec.model, "state": progress.state,
                "message": self._faults.message(name, progress.message), "version": progress.active,
                "replicas": str(spec.replicas), "gateway": self._gateway.address,
                "gateway_message": self.gateway_message,
            })  # fmt: skip
        return out
