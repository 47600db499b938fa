"""Serve's metrics become a snapshot, and the decision goes back."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from sundog.serving.scaling import Profile
from sundog.serving.serve_policy import (
    ARRIVALS,
    COMPLETIONS,
    SERVICE_S,
    SundogPolicy,
    autoscaling_config,
)

PROFILE = Profile(slots=8, startup_s=5.0, service_s=0.2, wait_slo_s=0.5, max_replicas=10)


def policy() -> SundogPolicy:
    return SundogPolicy(**autoscaling_config(PROFILE)["policy"]["policy_kwargs"])


def context(now_s: float, ongoing: float, ready: int = 1, **more: Any) -> SimpleNamespace:
    seen = {
        "current_time": now_s,
        "current_num_replicas": ready,
        "target_num_replicas": ready,
        "total_num_requests": ongoing,
        "total_queued_requests": 0.0,
        "aggregated_metrics": {},
        "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 10,
    }
    return SimpleNamespace(**{**seen, **more})


def test_requests_in_progress_are_enough() -> None:
    one = policy()
    assert one(context(0.0, 0.0))[0] == 1
    counts = [one(context(2.0 * tick, 16.0))[0] for tick in range(1, 20)]
    # 16 in progress on replicas of 8 slots: two for them and one spare.
    assert counts[-1] == 3
    assert "demand" in one(context(40.0, 16.0))[1]["reason"]


def test_between_decisions_it_repeats_the_last() -> None:
    one = policy()
    one(context(0.0, 0.0))
    count, state = one(context(2.0, 40.0))
    assert one(context(2.5, 0.0)) == (count, state)


def test_totals_of_replicas_are_differences_and_a_new_replica_counts_from_zero() -> None:
    def reports(**totals: float) -> dict[str, dict[str, float]]:
        return {
            ARRIVALS: dict(totals),
            COMPLETIONS: dict(totals),
            SERVICE_S: {name: total * 0.4 for name, total in totals.items()},
        }

    one = policy()
    one(context(0.0, 0.0, aggregated_metrics=reports(a=0)))
    for tick in range(1, 61):
        # A second replica comes after a minute, with totals of its own.
        metrics = reports(a=160 * tick) if tick <= 30 else reports(a=4800, b=160 * (tick - 30))
        count, state = one(context(2.0 * tick, 1.0, ready=2, aggregated_metrics=metrics))
    # 80 requests a second of 0.4 s are 32 slots; half a second of waiting smooths little.
    assert count == 6
    assert "0.39" in state["reason"]


def test_bounds_come_from_serve() -> None:
    one = policy()
    one(context(0.0, 0.0))
    few = {"capacity_adjusted_max_replicas": 2}
    assert one(context(2.0, 500.0, **few))[0] == 2


def test_the_config_is_json_and_leaves_waiting_to_the_decider() -> None:
    config = autoscaling_config(PROFILE, initial_replicas=2)
    assert json.loads(json.dumps(config)) == config
    assert config["upscale_delay_s"] == config["downscale_delay_s"] == 0.0
    assert config["initial_replicas"] == 2
    assert config["policy"]["policy_function"].endswith(":SundogPolicy")


def test_what_waits_in_front_of_the_replicas_has_arrived() -> None:
    one = policy()

    def arrivals(reached: float, queued: float) -> int:
        metrics = {ARRIVALS: {"a": reached}}
        seen = context(0.0, queued, total_queued_requests=queued, aggregated_metrics=metrics)
        return one._snapshot(seen, 0.0, 2.0, PROFILE).arrivals

    assert arrivals(80, 0) == 80
    assert arrivals(160, 40) == 120
    assert arrivals(240, 40) == 80
    assert arrivals(320, 0) == 40  # counted when they came
