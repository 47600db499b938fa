"""How long Ray Serve takes to a second replica after a load step: its default and Sundog's policy.

    python benchmarks/serve_reaction.py [--json OUT] [--quick]

Starts a small Ray of its own, deploys a handler that takes 0.2 s on one replica, calls it from 16
sides at once, and measures the seconds until a second replica is started,
and until it answers. `--quick` runs Sundog's policy
only; Ray Serve's default needs up to a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from this_machine import machine

from sundog.rayapi.local import LocalRay

SIDES = 16
HANDLER_S = 0.2
SLOTS = 8
GIVE_UP_S = 90.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--inside", choices=["sundog", "default"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(step(arguments.inside)))
        return 0
    report: dict[str, Any] = {"format": 1, "machine": machine(), "policies": {}}
    for policy in ["sundog"] if arguments.quick else ["sundog", "default"]:
        report["policies"][policy] = in_own_ray(policy)
        print(policy, report["policies"][policy], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def in_own_ray(policy: str) -> dict[str, Any]:
    """The step in a process of its own, so that nothing of one run reaches the next."""
    with LocalRay("file:///tmp", num_cpus=4, object_store_bytes=256 * 2**20) as ray:
        environment = {**ray.environment(), "RAY_ADDRESS": ray.endpoints.gcs}
        done = subprocess.run(
            [sys.executable, __file__, "--inside", policy],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=240,
        )
    return json.loads(done.stdout.splitlines()[-1])


def step(policy: str) -> dict[str, Any]:
    import ray
    from ray import serve

    from sundog.serving.scaling import Profile
    from sundog.serving.serve_policy import autoscaling_config

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="error")
    # What a start takes on this machine; a cloud node would say a minute.
    profile = Profile(
        slots=SLOTS,
        startup_s=5.0,
        service_s=HANDLER_S,
        wait_slo_s=0.5,
        min_replicas=1,
        max_replicas=4,
    )
    config: dict[str, Any] = {"min_replicas": 1, "max_replicas": 4}
    if policy == "sundog":
        config = autoscaling_config(profile)

    @serve.deployment(
        max_ongoing_requests=SLOTS,
        autoscaling_config=config,
        ray_actor_options={"num_cpus": 0.1},
    )
    class Handler:
        async def __call__(self) -> int:
            await asyncio.sleep(HANDLER_S)
            return os.getpid()

    serve.start(proxy_location="Disabled")
    handle = serve.run(Handler.bind(), name="step", route_prefix=None)
    handle.remote().result()
    try:
        return asyncio.run(_load(handle))
    finally:
        serve.delete("step")
        ray.shutdown()


async def _load(handle: Any) -> dict[str, Any]:
    from ray import serve

    began_s = time.monotonic()
    seen: dict[int, float] = {}
    stop = asyncio.Event()
    failed = answered = 0
    decided_s: float | None = None

    async def side() -> None:
        nonlocal failed, answered
        while not stop.is_set():
            try:
                pid = await handle.remote()
            except Exception:  # noqa: BLE001 - whatever went wrong is counted
                failed += 1
                continue
            answered += 1
            seen.setdefault(pid, round(time.monotonic() - began_s, 2))
            if len(seen) > 1:
                stop.set()

    async def watch() -> None:
        nonlocal decided_s
        while decided_s is None and not stop.is_set():
            status = await asyncio.to_thread(serve.status)
            states = status.applications["step"].deployments["Handler"].replica_states
            if sum(states.values()) > 1:
                decided_s = round(time.monotonic() - began_s, 2)
            await asyncio.sleep(0.2)

    watching = asyncio.create_task(watch())
    sides = [asyncio.create_task(side()) for _ in range(SIDES)]
    _, late = await asyncio.wait(sides, timeout=GIVE_UP_S)
    stop.set()
    if late:
        await asyncio.wait(late, timeout=5)
    await watching
    times = sorted(seen.values())
    return {
        "second_replica_starts_s": decided_s,
        "second_replica_answers_s": times[1] if len(times) > 1 else None,
        "answered": answered,
        "failed": failed,
    }


if __name__ == "__main__":
    sys.exit(main())
