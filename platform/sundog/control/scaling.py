"""How many replicas each version of a service has: counters in, the scaling decider, counts out.

serving/scaling.py decides. Its memory is in the store, so a restarted control goes on where it was.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sundog import telemetry
from sundog.clock import Clock
from sundog.control.counters import Counters, LaneSums
from sundog.control.serving_plan import App
from sundog.control.signals import Signals
from sundog.errors import SundogError
from sundog.serving.scaling import Profile, Snapshot, State, decide
from sundog.serving.scaling_state import from_json, to_json
from sundog.spec import ServiceSpec
from sundog.store import Lease, Store

EVERY_S = 2.0
WRITE_EVERY_S = 10.0
SERVICE_S = 0.02
"""The time of a request in a replica, until it is measured or a profile says it."""
STARTUP_S = 10.0
STARTS = 5
"""Start-ups that are remembered of a version; the slowest counts."""
WAIT_S = 1.0
"""How long a request may wait where the spec names no SLO."""

log = logging.getLogger("sundog.control")


def profile_of(spec: ServiceSpec, measured: Mapping[str, Any] | None = None) -> Profile:
    """What the decider knows of a service. `measured`: {service_s, startup_s} of a load test.

    A replica works on one call of the model at a time, so it has one slot; stacking several
    requests into a call shows as a shorter time for each.
    """
    known = measured or {}
    service_s = float(known.get("service_s", SERVICE_S))
    whole_s, first_s = spec.slo.whole_s, spec.slo.first
    # A third of the time that is left, at least: waits vary, and the SLO is on the slowest.
    # An answer's first part has waited as long as the answer has.
    waits_s = [first_s / 3] if first_s else []
    if whole_s is not None:
        waits_s.append(max((whole_s - service_s) / 3, service_s / 2))
    assert spec.replicas.high is not None
    return Profile(
        slots=1,
        startup_s=float(known.get("startup_s", STARTUP_S)),
        service_s=service_s,
        wait_slo_s=min(waits_s, default=WAIT_S),
        min_replicas=spec.replicas.low,
        max_replicas=spec.replicas.high,
        cold_start_worth_s=spec.keep_warm,
    )


class Scaler:
    """Called by the services controller in every round; looks at each version every two seconds."""

    def __init__(
        self, store: Store, lease: Lease, counters: Counters, signals: Signals, clock: Clock
    ) -> None:
        self._store = store
        self._lease = lease
        self._counters = counters
        self._signals = signals
        self._faults: dict[tuple[str, str], str] = {}
        self._clock = clock
        self._states: dict[tuple[str, str], State] = {}
        self._written_s: dict[tuple[str, str], float] = {}
        self._looked_s: dict[tuple[str, str], float] = {}
        self._begun_s: dict[tuple[str, str], float] = {}
        self._started: dict[tuple[str, str], deque[float]] = {}
        self._told: dict[tuple[str, str], int] = {}
        """The last number that an event told of, until it is there."""
        for key, document in store.scaling().items():
            try:
                self._states[key] = from_json(document)
            except SundogError as error:
                log.warning("the scaling memory of %s is left aside: %s", key[0], error)

    def counts(
        self,
        spec: ServiceSpec,
        apps: Mapping[str, App],
        measured: Mapping[str, Any] | None = None,
        awake: bool = False,
    ) -> dict[str, int]:
        """Replicas by version. `awake`: none of them sleeps now, whatever the spec allows."""
        self._time_starts(spec.service, apps)
        seen = [s for v in apps for s in self._started.get((spec.service, v), ())]
        known = {k: v for k, v in (measured or {}).items() if v is not None}
        if seen:
            # Where it runs now counts for more than where it was measured.
            known["startup_s"] = max(seen)
        profile = profile_of(spec, known)
        if awake:
            profile = replace(profile, min_replicas=max(1, profile.min_replicas))
        fixed = profile.min_replicas == profile.max_replicas
        return {
            version: profile.min_replicas if fixed else self._one(spec, version, app, profile)
            for version, app in apps.items()
        }

    def _time_starts(self, service: str, apps: Mapping[str, App]) -> None:
        """How long a version took from its first sight without a replica to its first replica."""
        now_s = self._clock.monotonic_s()
        for version, app in apps.items():
            key = (service, version)
            if not app.replicas:
                self._begun_s.pop(key, None)  # it sleeps
            elif not app.replica_ids:
                self._begun_s.setdefault(key, now_s)
            elif key in self._begun_s:
                times = self._started.setdefault(key, deque(maxlen=STARTS))
                times.append(now_s - self._begun_s.pop(key))

    def startup_s(self, service: str, version: str | None) -> float | None:
        """The last start-up time that was seen; None where control came later than the version."""
        times = self._started.get((service, version or ""))
        return times[-1] if times else None

    def prepare(
        self,
        spec: ServiceSpec,
        counts: Mapping[str, int],
        weights: Mapping[str, float],
        version: str,
        share: float,
    ) -> dict[str, int]:
        """With room on `version` for the share of traffic that it is about to get.

        `weights` hold now: a version that needs 5 replicas for half of the traffic needs 10 for all.
        """
        alone = [counts[v] / weight for v, weight in weights.items() if weight > 0 and v in counts]
        assert spec.replicas.high is not None
        room = min(math.ceil(min(alone, default=1) * share - 1e-9), spec.replicas.high)
        key, state = (spec.service, version), self._states.get((spec.service, version))
        if state is not None and room > state.count:
            # Wanted like any other number, so that it holds until the traffic is there.
            wanted = (*(one for one in state.wanted if one[1] > room), (state.at_s, room))
            self._states[key] = replace(state, count=room, wanted=wanted)
        return {**counts, version: max(counts.get(version, 1), room)}

    def _one(self, spec: ServiceSpec, version: str, app: App, profile: Profile) -> int:
        key, now_s = (spec.service, version), self._clock.now_s()
        state = self._states.get(key)
        there = app.replicas if app.replicas is not None else profile.min_replicas
        wakes = there == 0 and self._counters.waiting(*key) > 0
        due = now_s - self._looked_s.get(key, 0.0) >= EVERY_S
        if state is not None and not due and not wakes:
            return _within(state.count, profile)
        if not self._counters.is_heard():
            # Without a gateway's word, no traffic and no news look the same: nothing changes.
            return _within(there, profile)
        elapsed_s = now_s - self._looked_s.get(key, now_s - EVERY_S)
        self._looked_s[key] = now_s
        sums = self._counters.take_lane(*key)
        snapshot = _snapshot(now_s, elapsed_s, app, sums)
        signals, self._faults[key] = self._signals.read(spec, version, snapshot.ready)
        decision = decide(replace(snapshot, signals=signals), state, profile)
        count = _within(max(decision.count, int(wakes)), profile)
        if app.replicas in (None, count):
            self._told.pop(key, None)
        elif self._told.get(key) != count:
            self._told[key] = count
            log.info("%s: version %s on %d replicas: %s", *key, count, decision.reason)
            self._store.add_event(
                self._lease, telemetry.SERVICE_SCALED, spec.service,
                {"version": version, "from": app.replicas, "to": count, "why": decision.reason},
            )  # fmt: skip
        self._states[key] = decision.state
        changed = state is None or state.count != decision.count
        if changed or now_s - self._written_s.get(key, 0.0) > WRITE_EVERY_S:
            self._written_s[key] = now_s
            self._store.put_scaling(self._lease, *key, to_json(decision.state))
        return count

    def reason(self, service: str, version: str | None) -> tuple[int | None, str]:
        """The last decision for a version: how many, and why."""
        key = (service, version or "")
        state = self._states.get(key)
        if state is None:
            return None, ""
        return state.count, "; ".join(filter(None, (state.reason, self._faults.get(key))))

    def forget(self, service: str) -> None:
        for states in (
            self._states, self._written_s, self._looked_s, self._faults, self._begun_s,
            self._started, self._told,
        ):  # fmt: skip
            for key in [k for k in states if k[0] == service]:
                del states[key]  # type: ignore[attr-defined]


def _within(count: int, profile: Profile) -> int:
    return min(max(count, profile.min_replicas), profile.max_replicas)


def _snapshot(now_s: float, elapsed_s: float, app: App, sums: LaneSums) -> Snapshot:
    ready = len(app.replica_ids)
    wanted = app.replicas if app.replicas is not None else ready
    # A second call may wait inside a replica while it works on the first: no replica is busier
    # than all the time.
    busy_s = min(sums.busy_s, elapsed_s * max(ready, 1))
    return Snapshot(
        now_s=now_s,
        ready=ready,
        starting=max(0, wanted - ready),
        queued=sums.queued,
        running=min(sums.running, ready),
        arrivals=sums.arrivals,
        completions=sums.completions,
        completed_service_s=busy_s if sums.completions else 0.0,
    )
