"""The scaling decider as a policy of Ray Serve's own autoscaler, for plain Serve deployments.

    @serve.deployment(max_ongoing_requests=8,
                      autoscaling_config=autoscaling_config(Profile(slots=8, service_s=0.2)))

Translates Serve's metrics into a snapshot and the decision back. It decides nothing itself, and
needs no Ray to import: Serve hands it whatever context it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from sundog.serving.scaling import Profile, Snapshot, State, decide

EVERY_S = 1.0
# Running totals that a replica may report with `record_autoscaling_stats`.
ARRIVALS = "sundog_arrivals"
COMPLETIONS = "sundog_completions"
SERVICE_S = "sundog_service_s"


class SundogPolicy:
    """`AutoscalingPolicy(policy_function="sundog.serving.serve_policy:SundogPolicy",
    policy_kwargs=...)`; the keywords are those of `Profile`.

    Where replicas report totals of arrivals, completions and service time, those are used.
    Otherwise the requests in progress are all that is known, and Little's law turns them into
    arrivals at the profile's service time.
    """

    def __init__(self, **profile: Any) -> None:
        self._asked = profile
        self._state: State | None = None
        self._totals: dict[tuple[str, str], float] = {}
        self._queued = 0.0

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        now_s = float(ctx.current_time)
        state = self._state
        if state is not None and now_s < state.at_s + EVERY_S:
            return state.count, {"reason": state.reason}
        profile = Profile(
            **{
                **self._asked,
                "min_replicas": int(ctx.capacity_adjusted_min_replicas),
                "max_replicas": int(ctx.capacity_adjusted_max_replicas),
            }
        )
        elapsed_s = now_s - state.at_s if state is not None else 0.0
        decision = decide(self._snapshot(ctx, now_s, elapsed_s, profile), state, profile)
        self._state = decision.state
        return decision.count, {"reason": decision.reason}

    def _snapshot(self, ctx: Any, now_s: float, elapsed_s: float, profile: Profile) -> Snapshot:
        ready = int(ctx.current_num_replicas)
        ongoing = float(ctx.total_num_requests or 0.0)
        queued = min(float(ctx.total_queued_requests or 0.0), ongoing)
        metrics = ctx.aggregated_metrics or {}
        completions, service_s = 0, 0.0
        if ARRIVALS in metrics:
            # Replicas count what reached them; what waits in front of them has arrived as well.
            arrivals = round(max(self._more(ARRIVALS, metrics) + queued - self._queued, 0.0))
            completions = round(self._more(COMPLETIONS, metrics))
            service_s = self._more(SERVICE_S, metrics)
        else:
            arrivals = round(ongoing * elapsed_s / profile.service_s)
        self._queued = queued
        return Snapshot(
            now_s=now_s,
            ready=ready,
            starting=max(int(ctx.target_num_replicas) - ready, 0),
            queued=round(queued),
            running=round(ongoing - queued),
            arrivals=arrivals,
            completions=completions,
            completed_service_s=service_s,
        )

    def _more(self, name: str, metrics: Mapping[str, Mapping[Any, float]]) -> float:
        """By how much a total has grown over all replicas; a new replica counts from zero."""
        grown = 0.0
        for replica, total in metrics.get(name, {}).items():
            key = (name, str(replica))
            grown += max(float(total) - self._totals.get(key, 0.0), 0.0)
            self._totals[key] = float(total)
        return grown


def autoscaling_config(profile: Profile, initial_replicas: int | None = None) -> dict[str, Any]:
    """Serve's `autoscaling_config` with this policy. The decider has its own holds and margins, so
    Serve's delays are zero and its factors one.
    """
    kwargs = asdict(profile)
    bounds = {"min_replicas", "max_replicas"}
    assert bounds <= {one.name for one in fields(Profile)}
    config = {
        "min_replicas": profile.min_replicas,
        "max_replicas": profile.max_replicas,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "upscaling_factor": 1.0,
        "downscaling_factor": 1.0,
        "look_back_period_s": 1.0,
        "metrics_interval_s": 0.5,
        "policy": {
            "policy_function": "sundog.serving.serve_policy:SundogPolicy",
            "policy_kwargs": {key: value for key, value in kwargs.items() if key not in bounds},
        },
    }
    if initial_replicas is not None:
        config["initial_replicas"] = initial_replicas
    return config
