"""Model versions as services need them: looked up, held while served, released, aliases that follow.

The registry's side of control; it knows no Serve and no store.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from sundog.clock import Clock
from sundog.control.applications import model_name
from sundog.control.profiles import kept
from sundog.control.serving_plan import Resolved
from sundog.errors import SundogError
from sundog.serving.replica import describe_signature
from sundog.spec import ServiceSpec
from sundog.spec.base import split_reference
from sundog.storage.models import Registry
from sundog.storage.root import Root, open_root

HOLDER = "service"
PROFILE_LOOK_S = 30.0
REMOTE_LOOK_S = 2.0
"""How long an alias in object storage is believed; a local one is read every round."""

log = logging.getLogger("sundog.control")


class Versions:
    """`root` is where services look whose spec names none."""

    def __init__(self, root: str | None, clock: Clock) -> None:
        self._root = root
        self._clock = clock
        self._resolved: dict[tuple[str | None, ...], Resolved] = {}
        self._looked: dict[str, tuple[tuple[str | None, ...], float, Resolved]] = {}
        self._profiles: dict[tuple[str, str], tuple[float, dict[str, Any] | None]] = {}

    def root_of(self, spec: ServiceSpec) -> Root:
        return open_root(spec.root or self._root)

    def _registry(self, spec: ServiceSpec) -> Registry:
        return Registry(self.root_of(spec))

    def resolve(self, spec: ServiceSpec) -> Resolved:
        """What the spec's reference means now."""
        looked = self._looked.get(spec.service)
        now = self._clock.monotonic_s()
        asked = (spec.model, spec.root, spec.process)
        if looked is not None and looked[0] == asked and now < looked[1]:
            return looked[2]
        found = self.look_up(spec, spec.model)
        again_s = now + (0 if self.root_of(spec).is_local else REMOTE_LOOK_S)
        self._looked[spec.service] = (asked, again_s, found)
        return found

    def look_up(self, spec: ServiceSpec, reference: str) -> Resolved:
        """A version of the service's model, or why there is none."""
        try:
            version = self._registry(spec).get(reference)
            key = (spec.service, version.ref, spec.process)
            if key not in self._resolved:
                seen = self._registry(spec).get(spec.process) if spec.process else version
        except SundogError as error:
            return Resolved(None, str(error))
        if key not in self._resolved:
            signature = describe_signature(seen.signature)
            self._resolved[key] = Resolved(
                version.version, "", version.kind, signature, version.name
            )
        return self._resolved[key]

    def place(self, spec: ServiceSpec, version: str) -> dict[str, Any]:
        """Where a replica finds what it loads."""
        return {
            "root": str(self.root_of(spec).url),
            "name": model_name(spec),
            "version": int(version),
            "allow_code": spec.allow_code,
            "process": spec.process,
        }

    def profile(self, spec: ServiceSpec, version: str | None) -> dict[str, Any] | None:
        """What a load test left beside the version; looked up now and then."""
        if version is None or spec.replicas.low == spec.replicas.high:
            return None
        key, now = (spec.service, version), self._clock.monotonic_s()
        looked = self._profiles.get(key)
        if looked is None or now >= looked[0]:
            try:
                found = kept(self.root_of(spec), model_name(spec), int(version))
            except SundogError as error:
                log.warning("the profile of %s is left aside: %s", spec.service, error)
                found = None
            looked = self._profiles[key] = (now + PROFILE_LOOK_S, found)
        return looked[1]

    # -- holding, releasing, following

    def hold(self, spec: ServiceSpec, version: str) -> None:
        registry = self._registry(spec)
        registry.hold(model_name(spec), int(version), f"{HOLDER}:{spec.service}")
        if spec.process is not None:
            name, number = split_reference(spec.process)
            registry.hold(name, int(number), f"{HOLDER}:{spec.service}--v{version}")

    def release_all(self, spec: ServiceSpec, versions: Iterable[str]) -> None:
        """An undeployed service needs no version any more, wherever its applications went."""
        for version in versions:
            try:
                self.release(spec.service, self.place(spec, version))
            except SundogError as error:
                log.warning("the hold of version %s of %s stays: %s", version, spec.service, error)

    def release(self, service: str, place: Mapping[str, Any]) -> None:
        try:
            registry = Registry(open_root(place["root"]))
            registry.release(place["name"], place["version"], f"{HOLDER}:{service}")
            if place.get("process") is not None:
                name, number = split_reference(place["process"])
                registry.release(name, int(number), f"{HOLDER}:{service}--v{place['version']}")
        except SundogError as error:
            log.warning("the hold of %s@%s stays: %s", place["name"], place["version"], error)

    def follow_alias(self, spec: ServiceSpec, left: str, to: str) -> None:
        """The alias that the service follows goes where traffic went, if it still is at `left`."""
        model, alias = split_reference(spec.model)
        self._looked.pop(spec.service, None)
        if alias == "latest" or alias.isdigit():
            return
        try:
            self._registry(spec).set_alias(model, alias, int(to), expect=int(left))
        except SundogError as error:
            # Somebody moved it on in the meantime: theirs is the newer wish.
            log.info("the alias %s of %s stays: %s", alias, model, error)
