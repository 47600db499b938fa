"""A request trace replayed for real against Ray Serve, ten times as fast, beside its simulation.

    python benchmarks/serving_replay.py --trace FILE [--keep SHARE] [--json OUT] [--quick]
    python benchmarks/serving_replay.py --day [--json OUT]

Starts a small Ray of its own, deploys a handler under Sundog's policy in Serve's autoscaler, and
sends every request of the trace when it is due. All times are a tenth of those in
benchmarks/serving_scale.py: a start takes 6 s, the SLO is a wait of 0.5 s. The policy sees trace
time. Then the simulator serves the same requests. Compared are the replicas that are paid for (mean
over time) and the share of requests in the SLO; the first 180 s of the trace are left out.

`--day` replays a synthetic day in an hour instead (silent nights, two humps: `office_day` in
sim/trace_families.py), scales to zero, leaves nothing out, and compares the bill with the least
fixed number of replicas that holds 99.5% in the SLO. `--keep 0.05` keeps every twentieth request of
a trace that two cores cannot send; `--quick` replays the first seven minutes of the trace.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from this_machine import machine

from sundog.errors import SundogError
from sundog.rayapi.local import LocalRay
from sundog.serving.scaling import Profile
from sundog.serving.serve_policy import SundogPolicy, autoscaling_config
from sundog.sim.replicas import Setting, simulate, warm_start
from sundog.sim.scaling_policies import policies
from sundog.sim.trace_families import office_day
from sundog.sim.traces import Trace, load_trace

SPEED = 10.0
QUICK_S = 420.0
LOOK_S = 0.1
# Serve's own clocks run ten times as fast too. Its router looks again for a free slot after 0.025 s at
# first and 0.5 s at last, which uncompressed is little of a wait of 5 s.
ROUTER = {
    "RAY_SERVE_ROUTER_RETRY_INITIAL_BACKOFF_S": str(0.025 / SPEED),
    "RAY_SERVE_ROUTER_RETRY_MAX_BACKOFF_S": str(0.5 / SPEED),
}
LEAVE_S = 2.0 / SPEED
"""How often a replica that leaves looks whether its requests are done."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE")
    source.add_argument("--day", action="store_true", help="a synthetic day, scaled to zero")
    parser.add_argument("--keep", type=float, default=1.0, help="the share of requests to send")
    parser.add_argument("--slots", type=int, default=8, help="requests at a time in a replica")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        trace = load_trace(arguments.trace) if arguments.trace else office_day()
        trace = cut(trace, arguments.keep, arguments.quick)
    except SundogError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code
    setting = Setting(slots=arguments.slots, max_replicas=16)
    if arguments.day:
        setting = replace(setting, slots=2, min_replicas=0, initial=0, left_out_s=0.0)
    else:
        setting = warm_start(trace, setting)
    if arguments.inside:
        arguments.inside.write_text(json.dumps(replay(trace, setting)))
        sys.stderr.flush()
        os._exit(0)  # Serve's threads would complain about a Ray that has left
    real = in_own_ray(sys.argv[1:])
    report = {
        "format": 1,
        "machine": machine(),
        "trace": trace.name,
        "requests": len(trace),
        "trace_s": trace.duration_s,
        "speed": SPEED,
        "setting": asdict(setting),
        "real": real,
        "simulated": simulated(trace, setting),
    }
    report["replicas_real_over_simulated"] = round(
        real["replicas"] / report["simulated"]["replicas"], 3
    )
    for name in ("real", "simulated"):
        row = report[name]
        print(
            f"{name:10} {row['replicas']:.2f} replicas, {row['slo_attainment']:.2%} in the SLO, "
            f"{row['starts']} starts"
        )
    print(f"replicas real / simulated: {report['replicas_real_over_simulated']}")
    if arguments.day:
        report["always_on_replicas"] = fixed = always_on(trace, setting)
        report["bill_over_always_on"] = round(real["replicas"] / fixed, 3)
        print(f"the bill is {report['bill_over_always_on']:.0%} of {fixed} replicas always on")
        print(f"first answer from zero: {real['first_answer_s']:.1f} s; failed: {real['failed']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def cut(trace: Trace, keep: float, quick: bool) -> Trace:
    chosen = np.random.default_rng(0).random(len(trace)) < keep
    if quick:
        chosen &= trace.arrival_s < QUICK_S
        trace = replace(trace, duration_s=min(trace.duration_s, QUICK_S))
    return replace(trace, arrival_s=trace.arrival_s[chosen], service_s=trace.service_s[chosen])


def simulated(trace: Trace, setting: Setting) -> dict[str, Any]:
    ours = policies(setting, trace.mean_service_s)["sundog"]
    outcome = simulate(trace, ours, setting)
    judged_s = trace.duration_s - setting.left_out_s
    return {
        "replicas": round(outcome.bill_replica_s / judged_s, 3),
        "slo_attainment": round(outcome.slo_attainment, 4),
        "starts": outcome.starts,
    }


def always_on(trace: Trace, setting: Setting) -> int:
    """The least number of replicas that, always there, holds 99.5% in the SLO."""
    for count in range(1, setting.max_replicas + 1):
        fixed = replace(setting, initial=count, min_replicas=count, max_replicas=count)
        if simulate(trace, lambda _, count=count: count, fixed).slo_attainment >= 0.995:
            return count
    return setting.max_replicas


def in_own_ray(argv: list[str]) -> dict[str, Any]:
    os.environ |= ROUTER
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalRay("file:///tmp", num_cpus=8, object_store_bytes=256 * 2**20) as ray,
    ):
        out = Path(folder) / "replay.json"
        subprocess.run(
            [sys.executable, __file__, *argv, "--inside", str(out)],
            env={**ray.environment(), "RAY_ADDRESS": ray.endpoints.gcs},
            check=True,
        )
        return json.loads(out.read_text())


class TraceTime(SundogPolicy):
    """Sundog's policy on the trace's clock."""

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        names = (
            "capacity_adjusted_min_replicas", "capacity_adjusted_max_replicas",
            "current_num_replicas", "target_num_replicas", "total_num_requests",
            "total_queued_requests", "aggregated_metrics",
        )  # fmt: skip
        seen = SimpleNamespace(**{name: getattr(ctx, name) for name in names})
        seen.current_time = ctx.current_time * SPEED
        return super().__call__(seen)


def replay(trace: Trace, setting: Setting) -> dict[str, Any]:
    import ray
    from ray import serve

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="error")

    @serve.deployment(
        max_ongoing_requests=setting.slots, ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_wait_loop_s=LEAVE_S,
    )  # fmt: skip
    class Handler:
        def __init__(self, padding_s: float) -> None:
            time.sleep(padding_s)
            self.arrivals = self.completions = 0
            self.service_s = 0.0

        def record_autoscaling_stats(self) -> dict[str, float]:
            return {
                "sundog_arrivals": self.arrivals,
                "sundog_completions": self.completions,
                "sundog_service_s": self.service_s,
            }

        async def __call__(self, service_s: float) -> float:
            began_s = time.time()
            self.arrivals += 1
            await asyncio.sleep(service_s / SPEED)
            self.completions += 1
            self.service_s += service_s
            return began_s

    serve.start(proxy_location="Disabled")
    # What a start costs by itself; the rest of the start-up time is slept through.
    took_s = []
    for turn in range(3):
        began_s = time.monotonic()
        serve.run(Handler.bind(0.0), name=f"warm{turn}", route_prefix=None)
        took_s.append(time.monotonic() - began_s)
        serve.delete(f"warm{turn}")
    own_s = min(took_s)
    profile = Profile(
        slots=setting.slots,
        startup_s=setting.startup_s,
        service_s=trace.mean_service_s,
        wait_slo_s=setting.wait_slo_s,
        min_replicas=setting.min_replicas,
        max_replicas=setting.max_replicas,
    )
    config = autoscaling_config(profile, initial_replicas=setting.initial)
    config["policy"]["policy_function"] = TraceTime
    # Ten times as often as in production, like everything here.
    config |= {"look_back_period_s": LOOK_S, "metrics_interval_s": LOOK_S}
    padding_s = max(0.0, setting.startup_s / SPEED - own_s)
    handler = Handler.options(autoscaling_config=config)
    handle = serve.run(handler.bind(padding_s), name="replay", route_prefix=None)
    try:
        return asyncio.run(send(handle, trace, setting)) | {
            "start_s": round(own_s, 2), "padding_s": round(padding_s, 2),
        }  # fmt: skip
    finally:
        serve.delete("replay")


async def send(handle: Any, trace: Trace, setting: Setting) -> dict[str, Any]:
    began_s = time.time()
    waits_s = np.full(len(trace), np.inf)
    first_answer_s = 0.0
    paid: list[tuple[float, int, int]] = []
    over = asyncio.Event()

    async def one(i: int, due_s: float) -> None:
        nonlocal first_answer_s
        try:
            waits_s[i] = await handle.remote(float(trace.service_s[i])) - due_s
            if i == 0:
                first_answer_s = time.time() - due_s
        except Exception as fault:  # noqa: BLE001 - counted below as not in the SLO
            print(f"request {i}: {fault}", file=sys.stderr)

    tasks = []
    watching = asyncio.create_task(watch(began_s, paid, over))
    for i, at_s in enumerate(trace.arrival_s):
        due_s = began_s + at_s / SPEED
        if (ahead_s := due_s - time.time()) > 0:
            await asyncio.sleep(ahead_s)
        tasks.append(asyncio.create_task(one(i, due_s)))
        if i % 500 == 0:
            print(f"\r{at_s:5.0f} of {trace.duration_s:.0f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    over.set()
    await watching
    await asyncio.wait(tasks, timeout=60)
    judged = trace.arrival_s >= setting.left_out_s
    billed = [count for at_s, count, _ in paid if at_s >= setting.left_out_s]
    targets = [target for _, _, target in paid]
    return {
        "replicas": round(float(np.mean(billed)), 3),
        "slo_attainment": round(float((waits_s[judged] * SPEED <= setting.wait_slo_s).mean()), 4),
        "starts": sum(max(b - a, 0) for a, b in itertools.pairwise(targets)),
        "first_answer_s": round(first_answer_s, 2),
        "failed": int(np.isinf(waits_s).sum()),
    }


async def watch(began_s: float, paid: list[tuple[float, int, int]], over: asyncio.Event) -> None:
    """Notes trace time, replicas in any state, and replicas that are meant to stay."""
    from ray import serve

    while not over.is_set():
        status = await asyncio.to_thread(serve.status)
        states = status.applications["replay"].deployments["Handler"].replica_states
        count = sum(states.values())
        paid.append(((time.time() - began_s) * SPEED, count, count - states.get("STOPPING", 0)))
        await asyncio.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
