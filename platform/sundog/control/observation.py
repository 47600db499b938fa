"""What control sees of services: Serve's applications, and the specs in the anchors among them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from sundog.control.serving_plan import ANCHOR
from sundog.rayapi import serve_apps
from sundog.spec import ServiceSpec

log = logging.getLogger("sundog.control")


@dataclass
class Observation:
    """Serve's applications and the specs of the anchors among them."""

    apps: Mapping[str, serve_apps.AppView]
    specs: Mapping[str, ServiceSpec]
    anchors: Mapping[str, str]
    """service -> the application that is its anchor"""

    def is_rebuilt(self, anchor: str) -> bool:
        """A redeployed anchor shows no deployment for a while; its application is there all along."""
        app = self.apps.get(anchor)
        return app is not None and app.status != "DELETING" and ANCHOR not in app.deployments


def observe() -> Observation | None:
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
    return Observation(apps, specs, anchors)
