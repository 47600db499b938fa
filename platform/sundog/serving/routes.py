"""What a gateway serves now: the last route snapshot, and a lane with its links per model version.

Follows snapshots from control and targets from Serve; goes on with the last of both while either is
away. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from sundog.clock import WALL
from sundog.serving.capture import rule_of
from sundog.serving.contract import BadRequest, Contract
from sundog.serving.lane import HOLD_S, SWEEP_S, Lane, Limits, NotServed
from sundog.serving.reach import Reach
from sundog.serving.shadow import Shadow
from sundog.serving.split import Split

log = logging.getLogger("sundog.gateway")

_CLOSE_AFTER_S = 60.0
MAX_HELD = 100
"""Requests of one service that wait for its first version: they hold their bodies."""

Reaching = Callable[[Lane, str, str], Reach]
"""(lane, app, deployment) -> what keeps that lane's links."""


class VersionRoute:
    """One served version: its lane, and what keeps its links in step with Serve."""

    def __init__(self, service: dict[str, Any], version: str, reach: Reaching) -> None:
        entry = self.entry = service["versions"][version]
        self.version = version
        self.kind: str = entry["kind"]
        self.contract = Contract(service["service"], version, entry["signature"])
        self.lane = Lane(self.contract, limits_of(service))
        self.reach = reach(self.lane, entry["app"], entry["deployment"])

    @property
    def ready(self) -> bool:
        return bool(self.lane.connections)

    def sweep(self, now: float) -> None:
        self.lane.sweep()
        self.reach.expire(now)

    async def close(self) -> None:
        """No longer routed: finish what is queued and under way, then let go of the replicas."""
        end = WALL.monotonic_s() + _CLOSE_AFTER_S
        while (self.lane.waiting or self.lane.under_way) and WALL.monotonic_s() < end:
            self.lane.sweep()
            await asyncio.sleep(SWEEP_S)
        self.lane.close("this version is no longer served")
        self.reach.close()


def limits_of(service: dict[str, Any]) -> Limits:
    return Limits(
        deadline_s=service["deadline_s"],
        hold_s=service.get("hold_s", HOLD_S),
        slo_s=service.get("slo_s"),
        first_s=service.get("first_s"),
        queue=service["queue"],
        batch=service["batch"],
        idempotent=service["idempotent"],
    )


class ServiceRoute:
    """One service: which versions answer, with which weights."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.name: str = document["service"]
        self.versions: dict[str, VersionRoute] = {}
        self.weights: dict[str, float] = {}
        self.shadow: Shadow | None = None
        self.held = 0
        """Requests that wait for its first version"""
        self._only: str | None = None
        self._split: Split | None = None
        self.update(document)

    def update(self, document: dict[str, Any]) -> None:
        self.document = document
        self.max_body: int = document["max_body"]
        weights = {v: w for v, w in document["weights"].items() if w > 0}
        self._only = next(iter(weights)) if len(weights) == 1 else None
        # Other snapshots (a key, a message) must not start the sequence anew.
        if weights != self.weights or list(weights) != list(self.weights):
            self._split = Split(weights, document.get("salt", ""), os.getpid()) if weights else None
        self.weights = weights
        self.sticky: str | None = document.get("sticky")
        self.keeps_feedback: bool = document.get("feedback", False)
        self.labels: bool = document.get("labels", False)
        self.capture = rule_of(document.get("capture"))
        self._mirror(document.get("mirror"))

    def _mirror(self, document: dict[str, Any] | None) -> None:
        if document is None:
            self.shadow = None
            return
        ends = [self.versions.get(document[arm]) for arm in ("baseline", "candidate")]
        if ends[0] is None or ends[1] is None:
            self.shadow = None
        elif self.shadow is None or self.shadow.document != document:
            self.shadow = Shadow(document, ends[0].lane, ends[1].lane)

    def choose(self, key: str = "") -> VersionRoute | None:
        """The version that answers the next request (with this sticky key); None while there is
        none. A new version without any replica gives its turn to the running one; never the other
        way, since nobody has shown yet that the new one may have more than its share."""
        if self._only is not None:
            return self.versions.get(self._only)
        if self._split is None:
            return None
        found = self.versions.get(self._split.sticky(key) if key else self._split.choose())
        if found is not None and found.ready:
            return found
        running = self.versions.get(self.document.get("version") or "")
        return running if running is not None and running.ready else found

    def is_ready(self, chosen: VersionRoute | None) -> bool:
        """Whether a request would be answered. One that sleeps answers it, after its start."""
        return chosen is not None and (chosen.ready or bool(self.document.get("may_sleep")))

    def sticky_key(self, headers: Mapping[bytes, bytes], key_id: str) -> str:
        """What a request sticks to its version by; empty where it does not."""
        if self.sticky is None:
            return ""
        if self.sticky == "key":
            return key_id
        name = self.sticky.removeprefix("header:").lower().encode()
        return headers.get(name, b"").decode("latin-1")


class Routes:
    def __init__(self, reach: Reaching) -> None:
        self.services: dict[str, ServiceRoute] = {}
        self.snapshot: dict[str, Any] = {}
        self.loaded = asyncio.Event()
        self._reach = reach
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def version(self) -> tuple[int, int]:
        return self.snapshot.get("epoch", 0), self.snapshot.get("version", 0)

    def apply(self, snapshot: dict[str, Any]) -> bool:
        """Take over a newer snapshot; an older one, from a control that was replaced, is refused."""
        if (snapshot["epoch"], snapshot["version"]) <= self.version:
            return False
        self.snapshot = snapshot
        for name, document in snapshot["services"].items():
            try:
                route = self.services.get(name)
                if route is None:
                    route = self.services[name] = ServiceRoute(document)
                self._update(route, document)
            except (KeyError, TypeError, ValueError):
                # Such as a route that a newer control describes: the others must not wait for it.
                log.exception(
                    "the new route of service %s is not understood, its old one stays", name
                )
        for name in set(self.services) - set(snapshot["services"]):
            route = self.services.pop(name)
            for version in route.versions.values():
                self._close(version)
        self.loaded.set()
        return True

    def _update(self, route: ServiceRoute, document: dict[str, Any]) -> None:
        for version, entry in document["versions"].items():
            there = route.versions.get(version)
            if there is not None and there.entry == entry:
                there.lane.follow(limits_of(document))
                continue
            route.versions[version] = VersionRoute(document, version, self._reach)
            if there is not None:  # another model's version of the same number
                route.shadow = None
                self._close(there)
        route.update(document)
        for version in set(route.versions) - set(document["versions"]):
            self._close(route.versions.pop(version))

    def _close(self, version: VersionRoute) -> None:
        task = asyncio.ensure_future(version.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def find(self, name: str) -> ServiceRoute:
        """Raises BadRequest (404) that names the nearest service."""
        route = self.services.get(name)
        if route is None:
            near = difflib.get_close_matches(name[:100], self.services, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near
                else f"services: {', '.join(sorted(self.services)) or 'none is deployed'}"
            )  # fmt: skip
            raise BadRequest(f"there is no service {name[:100]!r}; {hint}", 404)
        return route

    def find_version(
        self, name: str, version: str | None, key: str = ""
    ) -> tuple[ServiceRoute, VersionRoute | None]:
        """The version that was asked for, or the one whose turn it is. BadRequest 404."""
        route = self.find(name)
        if version is None:
            return route, route.choose(key)
        found = route.versions.get(version)
        if found is None:
            served = ", ".join(sorted(route.versions)) or "none yet"
            raise BadRequest(
                f"version {version[:100]!r} of {name!r} is not served; served: {served}", 404
            )
        return route, found

    async def first_version(self, name: str) -> VersionRoute:
        """The version of a service that has none yet, such as one that is just starting. Raises
        BadRequest, and NotServed as the service's `hold`, `deadline` and `queue` say."""
        route = self.find(name)
        limits = limits_of(route.document)
        most = min(limits.queue, MAX_HELD)
        if route.held >= most:
            raise NotServed(503, f"{most} requests wait for the first version already", 1.0)
        route.held += 1
        end_s = WALL.monotonic_s() + min(limits.hold_s, limits.deadline_s)
        try:
            while WALL.monotonic_s() < end_s and self.find(name).document["state"] != "failed":
                await asyncio.sleep(SWEEP_S)
                chosen = self.find(name).choose()
                if chosen is not None:
                    return chosen
        finally:
            route.held -= 1
        message = self.find(name).document.get("message") or f"service {name!r} is starting"
        raise NotServed(503, message, 2.0)

    async def sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = WALL.monotonic_s()
            for route in self.services.values():
                for version in route.versions.values():
                    version.sweep(now)
