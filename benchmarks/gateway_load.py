"""What the gateway makes of load: its tail at 70% of what it can, batches of a slow model, binary tensors.

    python benchmarks/gateway_load.py [--quick] [--json OUT] [--seconds 8]

One Ray, three services behind one gateway with keys: the model of benchmarks/gateway.py, and a model that
takes 5 ms a call however many rows it gets, once in batches and once a row at a time (`batch: 1`). wrk
sends, the median of three windows. For the tail each of 128 connections waits a random while between its
requests (exponential, so that arrivals are nearly Poisson's) at 70% of the rate that 32 busy ones got.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gateway import LUA, deployed, make_model, window
from this_machine import machine

SLOW = """
import time

class Slow:
    def predict(self, inputs):
        time.sleep(0.005)
        return {"logits": inputs["pixels"][:, :10]}
"""
CALM = """
math.randomseed(os.time())
function delay()
  return math.floor(-math.log(1 - math.random()) * {mean_ms})
end
"""
TAIL_CONNECTIONS = 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one window of a second each")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a window")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed\n  Debian: apt-get install wrk")
    repeats, seconds = (1, 1.0) if args.quick else (3, args.seconds)
    with tempfile.TemporaryDirectory(prefix="sundog-bench-") as name:
        found = measured(Path(name), repeats, seconds)
    result = {
        "format": 1, "benchmark": "gateway_load", "machine": machine(), "quick": args.quick,
        "seconds": seconds, "repeats": repeats, **found,
    }  # fmt: skip
    tail, batches, binary = found["at_70"], found["batching"], found["binary"]
    print(
        f"at 70% ({tail['rps']:,.0f}/s of {found['json']['rps']:,.0f}): p50 {tail['p50_ms']:.2f} ms, "
        f"p99 {tail['p99_ms']:.2f} ms, {tail['p99_over_p50']:.1f} times (goal: at most 3)"
    )
    print(
        f"5 ms a call: {batches['batched_rps']:,.0f}/s in batches, {batches['single_rps']:,.0f}/s a "
        f"row at a time, {batches['ratio']:.1f} times (goal: at least 8)"
    )
    print(f"binary tensors: {binary['rps']:,.0f}/s, {binary['over_json']:.2f} times JSON's")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def measured(folder: Path, repeats: int, seconds: float) -> dict[str, Any]:
    from sundog.storage.models import Registry
    from sundog.storage.root import open_root

    path, (_, signature) = make_model(folder)
    registry = Registry(open_root(f"file://{folder}/root"))
    registry.import_export("mlp", path, signature, alias="champion")
    source = folder / "source"
    source.mkdir()
    (source / "slow.py").write_text(SLOW)
    registry.import_python("slow", source, "slow:Slow", signature, alias="champion")
    slow = {"model": "slow@champion", "allow_code": True, "queue": 2000}
    services = [
        {"service": "mlp", "model": "mlp@champion"},
        {"service": "batched", **slow}, {"service": "single", **slow, "batch": 1},
    ]  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 17, (1, 64)).astype("<f4")
    tensor = {"name": "pixels", "shape": [1, 64], "datatype": "FP32"}
    plain = json.dumps({"inputs": [{**tensor, "data": pixels.reshape(-1).tolist()}]}).encode()
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": {"binary_data_size": pixels.nbytes}}],
         "parameters": {"binary_data_output": True}}
    ).encode()  # fmt: skip
    with deployed(f"file://{folder}/root", folder, services) as (ray, headers):
        pids = [p.pid for p in ray.processes()]

        def load(service: str, body: bytes, connections: int, script: str = "", **more: str) -> Any:
            (folder / "body").write_bytes(body)
            lines = [f'wrk.headers["{k}"] = "{v}"' for k, v in {**headers, **more}.items()]
            file = folder / "load.lua"
            file.write_text(LUA % ("\n".join(lines), folder / "body") + script)
            url = f"{ray.endpoints.gateway}/v2/models/{service}/infer"
            window(url, file, connections, min(2.0, seconds), pids)  # warm-up
            runs = [window(url, file, connections, seconds, pids) for _ in range(repeats)]
            errors = sum(int(r["errors"]) for r in runs)
            if errors:
                raise SystemExit(f"{service}: {errors} requests failed")
            names = ("rps", "p50_ms", "p99_ms", "foreign_cpu")
            return {n: round(statistics.median(r[n] for r in runs), 3) for n in names}

        busy = load("mlp", plain, 32)
        length = {"inference-header-content-length": str(len(head))}
        kind = {"content-type": "application/octet-stream"}
        binary = load("mlp", head + pixels.tobytes(), 32, **length, **kind)
        mean_ms = 1000 * TAIL_CONNECTIONS / (0.7 * busy["rps"])
        tail = load("mlp", plain, TAIL_CONNECTIONS, CALM.format(mean_ms=mean_ms))
        batched, single = load("batched", plain, 128), load("single", plain, 128)
    return {
        "json": busy,
        "binary": {**binary, "over_json": round(binary["rps"] / busy["rps"], 3)},
        "at_70": {**tail, "p99_over_p50": round(tail["p99_ms"] / tail["p50_ms"], 2)},
        "batching": {
            "batched_rps": batched["rps"], "single_rps": single["rps"],
            "ratio": round(batched["rps"] / single["rps"], 2),
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
