"""What control sees of services: Serve's applications, and the specs in the anchors among them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pydantic import ValidationError

from sundog.control.serving_plan import ANCHOR
from sundog.rayapi import serve_apps
from sundog.spec import ServiceSpec

log = logging.getLogger("sundog.control")


@dataclass
class Observation:
    """Serve's applications and the specs of the anchors among them."""

    apps: Mapping[str, serve_apps.AppView]
    specs: dict[str, ServiceSpec]
    anchors: dict[str, str]
    """service -> the application that is its anchor"""

    def is_rebuilt(self, anchor: str) -> bool:
        """A redeployed anchor shows no deployment for a while; its application is there all along."""
        app = self.apps.get(anchor)
        return app is not None and app.status != "DELETING" and ANCHOR not in app.deployments


def observe(before: Mapping[str, str]) -> Observation | None:
    """None where Serve does not run (any more): then there is nothing to bring about.

    `before`: the anchors of the last round. Where several applications declare the same service, the
    one that did so first stays its anchor.
    """
    apps = serve_apps.applications()
    if apps is None:
        return None
    declared: dict[str, dict[str, ServiceSpec]] = {}
    for app in apps.values():
        anchor = app.deployments.get(ANCHOR)
        if anchor is None or app.status == "DELETING":
            continue
        try:
            spec = ServiceSpec.model_validate(anchor.user_config["spec"])
        except (ValidationError, KeyError, TypeError) as error:
            log.warning("anchor %s is not read: %s", app.name, error)
            continue
        declared.setdefault(spec.service, {})[app.name] = spec
    seen = Observation(apps, {}, {})
    for service, specs in declared.items():
        first = before.get(service, "")
        if first not in specs:
            if seen.is_rebuilt(first):
                continue  # it is back in a moment
            first = min(specs)
        seen.specs[service], seen.anchors[service] = specs[first], first
        for other in set(specs) - {first}:
            _warn(service, first, other)
    return seen


@lru_cache(256)
def _warn(service: str, first: str, other: str) -> None:
    """Once, not in every round."""
    log.warning(
        "applications %s and %s both declare service %s: what %s says has no effect; give its service "
        "another name, or delete it", first, other, service, other,
    )  # fmt: skip
