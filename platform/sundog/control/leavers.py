"""Serve applications that must go: versions that no route names any more, and what did not start."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sundog.clock import Clock
from sundog.control.serving_plan import GATEWAY_APP, RETRY_S, service_of
from sundog.control.snapshots import Snapshots
from sundog.control.versions import Versions
from sundog.rayapi import serve_apps

RETIRE_AFTER_S = 10.0
"""So long a gateway that does not acknowledge a route keeps a version alive."""

log = logging.getLogger("sundog.control")

Apps = Mapping[str, serve_apps.AppView]


class Leavers:
    """Called in every round; remembers since when an application waits to go."""

    def __init__(self, snapshots: Snapshots, models: Versions, clock: Clock) -> None:
        self._snapshots = snapshots
        self._models = models
        self._clock = clock
        self._retiring: dict[str, tuple[int, float]] = {}
        self._failed: dict[str, float] = {}

    def retire(self, apps: Apps, unrouted: set[str], services: set[str]) -> None:
        """Delete what is unrouted or of a service that is gone, once every gateway knows."""
        now = self._clock.monotonic_s()
        orphans = {
            app
            for app, view in apps.items()
            if (owner := service_of(app)) and owner[0] not in services
            and view.status != "DELETING" and "Model" in view.deployments
        }  # fmt: skip
        leaving = unrouted | orphans
        self._retiring = {app: since for app, since in self._retiring.items() if app in leaving}
        for app in leaving:
            version, since_s = self._retiring.setdefault(app, (self._snapshots.version, now))
            if self._snapshots.acknowledged(version) or now - since_s > RETIRE_AFTER_S:
                log.info("%s is no longer routed, it is removed", app)
                serve_apps.delete(app)
                config = apps[app].deployments["Model"].user_config or {}
                owner = service_of(app)
                if owner is not None and config.get("place"):
                    self._models.release(owner[0], config["place"])

    def retry(self, apps: Apps, active: set[str]) -> None:
        """Take away what did not start and answers nothing; the next round deploys it again."""
        now = self._clock.monotonic_s()
        failed = {
            app
            for app, view in apps.items()
            if view.status == "DEPLOY_FAILED" and app not in active
            and (app == GATEWAY_APP or "Model" in view.deployments)
        }  # fmt: skip
        self._failed = {app: self._failed.get(app, now) for app in failed}
        for app, since_s in list(self._failed.items()):
            if now - since_s > RETRY_S:
                log.info("%s did not start, it is tried again", app)
                serve_apps.delete(app)
                del self._failed[app]
