"""What a live rollout costs callers: a shadow's share of p99, how exact a split is, how fast it moves.

    python benchmarks/rollout_live.py [--json OUT] [--quick] [--rate 400]

Starts a small Ray of its own and deploys one service. Windows of a steady open-loop load without and
with a shadow of all traffic follow each other; then an A/B split of 10% answers a counted number of requests,
and its promotion is timed from the command to the last answer of the old version, with every
request counted that failed on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml
from this_machine import machine

from sundog.control.serve_files import deploy_file
from sundog.rayapi.local import LocalRay
from sundog.serving.open_load import Load, OpenLoad
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.signature import Signature, TensorSpec

MODEL = """
class Plus:
    def predict(self, inputs):
        return {"y": inputs["x"] + 1}
"""
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()
SHARE = 0.1


class Bench:
    def __init__(self, ray: LocalRay, folder: Path) -> None:
        self.ray, self.folder = ray, folder
        self.root, self.gateway = open_root(ray.endpoints.root), ray.endpoints.gateway
        source = folder / "plus"
        source.mkdir()
        (source / "plus.py").write_text(MODEL)
        x, y = (TensorSpec(name, "FP32", (-1, 4)) for name in "xy")
        for _ in range(2):
            Registry(self.root).import_python("plus", source, "plus:Plus", Signature((x,), (y,)))
        self.load = OpenLoad(self.gateway, "/v2/models/plus/infer", BODY)

    def deploy(self, version: int, **rollout: Any) -> None:
        args = {
            "service": "plus", "model": f"plus@{version}", "allow_code": True, "rollout": rollout,
        }  # fmt: skip
        app = {"name": "plus", "import_path": "sundog:service", "route_prefix": None, "args": args}
        path = self.folder / "plus.yaml"
        path.write_text(yaml.safe_dump({"proxy_location": "Disabled", "applications": [app]}))
        token = Path(self.ray.endpoints.token_path).read_text().strip()
        deploy_file(path, self.ray.endpoints.dashboard, token)

    def sundog(self, *words: str, check: bool = True) -> str:
        environment = {
            **self.ray.environment(), "RAY_ADDRESS": self.ray.endpoints.gcs,
            "SUNDOG_GATEWAY": self.gateway, "SUNDOG_ROOT": self.root.url,
        }  # fmt: skip
        command = [sys.executable, "-m", "sundog", *words]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=check
        ).stdout

    def row(self) -> dict[str, Any]:
        rows = httpx.get(f"{self.gateway}/sundog/services", trust_env=False).json()
        return next((r for r in rows if r["service"] == "plus"), {})

    def answered(self) -> dict[str, int]:
        """Requests by version, from the gateway's metrics."""
        found: dict[str, int] = {}
        text = httpx.get(f"{self.gateway}/metrics", trust_env=False).text
        for line in text.splitlines():
            if line.startswith("sundog_gateway_requests_total{"):
                version = line.split('version="')[1].split('"')[0]
                found[version] = found.get(version, 0) + int(float(line.rsplit(" ", 1)[1]))
        return found


def wait(what: str, check: Callable[[], Any], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if check():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{what} did not come about")


async def shadow(bench: Bench, rate: float, seconds: float, windows: int) -> dict[str, Any]:
    """Windows without and with a shadow of everything, in turn; the ratio of their median p99s."""
    await bench.load.run(rate, 2.0)
    found: dict[str, list[float]] = {"without": [], "with": []}
    failed = 0
    for i in range(2 * windows):
        word = ("without", "with")[i % 2]
        if word == "with":
            await asyncio.to_thread(
                bench.deploy, 2, strategy="shadow", guards=["errors", "answers"]
            )
            await asyncio.to_thread(
                wait, "the shadow",
                lambda: "shadowing" in bench.sundog("rollout", "status", "plus", check=False),
            )  # fmt: skip
        load = await bench.load.run(rate, seconds)
        failed += load.failed
        found[word].append(load.quantile_s(0.99))
        if word == "with":
            await asyncio.to_thread(
                bench.deploy, 1, strategy="shadow", guards=["errors", "answers"]
            )
            await asyncio.to_thread(
                wait, "the end", lambda: list(bench.row()["weights"]) == ["1"]
                and len(bench.row()["versions"]) == 1,
            )  # fmt: skip
    medians = {word: statistics.median(values) for word, values in found.items()}
    return {
        "p99_without_s": found["without"], "p99_with_s": found["with"], "failed": failed,
        "p99_ratio": medians["with"] / medians["without"],
    }  # fmt: skip


async def split(bench: Bench, rate: float, requests: int) -> dict[str, Any]:
    """An A/B split's share over counted requests, then the time of its promotion."""
    bench.deploy(2, strategy="ab", share=SHARE, guards=["errors"])
    wait("the split", lambda: len(bench.row()["weights"]) == 2)
    before = bench.answered()
    seen: Load = await bench.load.run(rate, requests / rate)
    after = bench.answered()
    new, old = (after.get(v, 0) - before.get(v, 0) for v in ("2", "1"))
    going = asyncio.create_task(bench.load.run(rate, 20.0))
    await asyncio.sleep(1.0)
    await asyncio.to_thread(bench.sundog, "rollout", "promote", "plus", "--yes")
    told_s = time.monotonic()
    moved_s = told_s
    last = (await asyncio.to_thread(bench.answered)).get("1", 0)
    while time.monotonic() - told_s < 8.0:
        await asyncio.sleep(0.05)
        now = (await asyncio.to_thread(bench.answered)).get("1", 0)
        if now != last:
            last, moved_s = now, time.monotonic()
    during = await going
    return {
        "requests": new + old, "share_asked": SHARE, "share_seen": new / (new + old),
        "failed": seen.failed + during.failed, "old_version_after_promote_s": moved_s - told_s,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one short window of each")
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second")
    args = parser.parse_args()
    seconds, windows, requests = (3.0, 1, 4_000) if args.quick else (15.0, 5, 100_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "root").mkdir()
        with LocalRay(
            (folder / "root").as_uri(), num_cpus=4, object_store_bytes=256 * 2**20
        ) as ray:
            bench = Bench(ray, folder)
            bench.deploy(1)
            url = f"{bench.gateway}/v2/models/plus/ready"
            wait("the service", lambda: httpx.get(url, trust_env=False).status_code == 200)

            async def measure() -> dict[str, Any]:
                result = {"shadow": await shadow(bench, args.rate, seconds, windows)}
                print(json.dumps(result), flush=True)
                result["split"] = await split(bench, args.rate, requests)
                print(json.dumps(result["split"]), flush=True)
                return result

            report = {"format": 1, "machine": machine(), "rate": args.rate}
            report |= asyncio.run(measure())
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
