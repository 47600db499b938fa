"""The gateway against its peers: same model, same load, same machine, one run.

    python benchmarks/gateway.py [--quick] [--json OUT] [--rows sundog,fastapi] [--peers DIR]

Ray Serve runs in its three modes (its own proxy, HAProxy, HAProxy and RAY_SERVE_THROUGHPUT_OPTIMIZED)
bare, and in the usual shape: a FastAPI deployment that calls the model by a handle. Peers that
`make bench-peers` has installed are found by themselves; those that are not there are left out.
Load comes from wrk (Debian: apt-get install wrk), one JSON row of 64 numbers a request, at 1, 32
and 128 connections, the median of three windows. Every row's answer is compared with the model's
own before it is measured. Ours asks for an API key, as it does wherever one exists. `foreign_cpu` is
the share of the machine that other programs used in the window: look at it before believing a number.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from this_machine import machine

from sundog.rayapi.local import LocalRay, free_ports

HERE = Path(__file__).parent
CONNECTIONS = (1, 32, 128)
OWN = ("sundog", "fastapi")
EDGE = "sundog-edge"
"""Two gateways behind the edge's HAProxy."""
_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
_BOTH = {**_HAPROXY, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
RAY = {
    f"ray-serve{shape}{mode}": variables
    for shape in ("", "-usual")
    for mode, variables in (("", {}), ("-haproxy", _HAPROXY), ("-haproxy-optimised", _BOTH))
}
# peer -> the environment that `make bench-peers` gives it, and where it answers
FOREIGN = {
    "mosec": ("python", "/inference"), "mosec-batched": ("python", "/inference"),
    "litserve": ("python", "/predict"), "bentoml": ("python", "/infer"),
    "mlserver": ("mlserver", "/v2/models/mlp/infer"),
    "triton": ("triton", "/v2/models/mlp/infer"),
}  # fmt: skip
ROWS = (*OWN, EDGE, *RAY, *FOREIGN)

# A body from a file, asked for over and over.
LUA = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
%s
local file = io.open("%s", "rb")
wrk.body = file:read("*a")
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %%d, "us": %%d, "p50": %%f, "p99": %%f, "errors": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def make_model(folder: Path) -> tuple[Path, Any]:
    """A 64-128-10 MLP as an exported program."""
    import torch

    from sundog.storage.programs import export_program

    class Mlp(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
            )

        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layers(pixels)}

    torch.manual_seed(0)
    model = Mlp().eval()
    path = folder / "mlp.pt2"
    signature = export_program(model, {"pixels": torch.zeros(2, 64)}, path)
    torch.save(model.layers.state_dict(), folder / "mlp.weights.pt")
    layers = {"w1": model.layers[0].weight, "b1": model.layers[0].bias,
              "w2": model.layers[2].weight, "b2": model.layers[2].bias}  # fmt: skip
    np.savez(folder / "mlp.npz", **{k: v.detach().numpy() for k, v in layers.items()})
    return path, (model, signature)


@dataclass(frozen=True)
class Row:
    """What is there to be measured."""

    url: str
    pids: list[int]
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def deployed(
    root: str, folder: Path, services: list[dict[str, Any]], gateways: int = 1
) -> Iterator[tuple[LocalRay, dict[str, str]]]:
    """The whole platform: `sundog deploy` of services on a local Ray, and the headers with a key."""
    from sundog.control.serve_files import deploy_file

    file = folder / "services.yaml"
    common = {"import_path": "sundog:service", "route_prefix": None}
    apps = [{"name": s["service"], **common, "args": s} for s in services]
    file.write_text(json.dumps({"proxy_location": "Disabled", "applications": apps}))
    with LocalRay(root, num_cpus=2, object_store_bytes=256 * 2**20, gateways=gateways) as ray:
        token = Path(ray.endpoints.token_path).read_text().strip()
        deploy_file(file, ray.endpoints.dashboard, token)
        for service in services:
            url = f"{ray.endpoints.gateway}/v2/models/{service['service']}"
            wait(lambda u=url: httpx.get(f"{u}/ready", trust_env=False).status_code == 200)
        made = subprocess.run(
            [str(Path(sys.executable).parent / "sundog"), "keys", "create", "bench", "--json"],
            env=ray.environment() | {"RAY_ADDRESS": ray.endpoints.gcs}, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        wait(lambda: httpx.post(f"{url}/infer", trust_env=False).status_code == 401)
        yield ray, {"x-api-key": json.loads(made.stdout)["key"]}


@contextmanager
def sundog_row(folder: Path, path: Path, signature: Any, gateways: int = 1) -> Iterator[Row]:
    from sundog.storage.models import Registry
    from sundog.storage.root import open_root

    root = open_root(f"file://{folder}/root-{gateways}")
    Registry(root).import_export("mlp", path, signature, alias="champion")
    services = [{"service": "mlp", "model": "mlp@champion"}]
    with deployed(root.url, folder, services, gateways) as (ray, headers):
        url = f"{ray.endpoints.gateway}/v2/models/mlp/infer"
        yield Row(url, [p.pid for p in ray.processes()], headers)


@contextmanager
def peer_row(name: str, path: Path) -> Iterator[Row]:
    [port] = free_ports(1)
    peer = "fastapi" if name == "fastapi" else "ray-serve"
    if name.startswith("ray-serve-usual"):
        peer = "ray-serve-usual"
    command = [sys.executable, str(HERE / "gateway_peers.py"), peer, "--port", str(port)]
    command += ["--model", str(path.with_name("mlp.weights.pt"))]
    if name == "fastapi":
        with ended(subprocess.Popen(command, stdout=subprocess.PIPE)) as process:
            url = f"http://127.0.0.1:{port}/v2/models/mlp/infer"
            wait(lambda: httpx.get(url, trust_env=False).status_code == 405)
            yield Row(url, [process.pid])
        return
    metrics, stats = free_ports(2)
    own = {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
    }
    with (
        variables(RAY[name] | own),
        haproxies_ended(),
        LocalRay("file:///nonexistent", num_cpus=2, object_store_bytes=256 * 2**20) as ray,
    ):
        environment = ray.environment() | {"RAY_ADDRESS": ray.endpoints.gcs}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        with ended(process):
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == b"ready":
                    break
            pids = [p.pid for p in ray.processes()] + [process.pid]
            yield Row(f"http://127.0.0.1:{port}/v2/models/mlp/infer", pids)


@contextmanager
def haproxies_ended() -> Iterator[None]:
    """Ray's own HAProxy outlives a Ray that is stopped: end those that came meanwhile."""

    def there() -> dict[int, psutil.Process]:
        return {p.pid: p for p in psutil.process_iter(["name"]) if p.info["name"] == "haproxy"}

    before = there()
    try:
        yield
    finally:
        for pid, process in there().items():
            if pid not in before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


@contextmanager
def foreign_row(name: str, folder: Path, python: Path) -> Iterator[Row]:
    """A peer in its own environment; its processes are its process and all that it starts."""
    port = free_ports(3)[0]
    command = [str(python), str(HERE / "gateway_foreign.py"), name, "--port", str(port)]
    command += ["--model", str(folder / "mlp.npz")]
    log = (folder / f"{name}.log").open("wb")
    with log, ended(subprocess.Popen(command, stdout=log, stderr=log)) as process:
        url = f"http://127.0.0.1:{port}{FOREIGN[name][1]}"
        body = (folder / "body.json").read_bytes()
        headers = {"content-type": "application/json"}
        try:
            wait(lambda: httpx.post(url, content=body, headers=headers, trust_env=False).is_success)
        except SystemExit:
            print((folder / f"{name}.log").read_text()[-2000:], file=sys.stderr)
            raise
        known = psutil.Process(process.pid)
        yield Row(url, [process.pid, *(p.pid for p in known.children(recursive=True))])


@contextmanager
def variables(changes: dict[str, str]) -> Iterator[None]:
    """Set for a while in this process, and so for what it starts."""
    before = {k: os.environ.get(k) for k in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        # One that ended by itself has left nothing to wait for.
        alive = process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True) if alive else []
        process.terminate()
        process.wait(30)
        for child in started:  # some peers leave their workers behind
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue


def wait(check: Any, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if check():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit("the row did not come up")


def check_answer(row: Row, body: dict[str, Any], expected: np.ndarray[Any, Any]) -> None:
    answer = httpx.post(row.url, json=body, headers=row.headers, timeout=30, trust_env=False)
    answer.raise_for_status()
    got = np.array(answer.json()["outputs"][0]["data"], dtype=np.float32)
    if not np.allclose(got, expected, atol=1e-5):
        raise SystemExit(f"{row.url} answers something else: {got} instead of {expected}")


def cpu_seconds(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
        except psutil.Error:
            continue
    return total


def machine_seconds() -> float:
    times = psutil.cpu_times()
    return times.user + times.system + times.nice + times.softirq + times.irq


def window(
    url: str, script: Path, connections: int, seconds: float, pids: list[int]
) -> dict[str, float]:
    """One run of wrk: rps, p50_ms, p99_ms, errors, foreign_cpu."""
    machine, own = machine_seconds(), cpu_seconds(pids)
    start = time.monotonic()
    process = subprocess.Popen(
        ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "-s", str(script), url],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    before = resource_children()
    output = process.communicate()[0]
    passed = time.monotonic() - start
    used = cpu_seconds(pids) - own + resource_children() - before
    foreign = max(0.0, machine_seconds() - machine - used) / passed / (os.cpu_count() or 1)
    seen = json.loads(output.strip().splitlines()[-1])
    return {
        "rps": seen["requests"] / seen["us"] * 1e6,
        "p50_ms": seen["p50"] / 1000,
        "p99_ms": seen["p99"] / 1000,
        "errors": seen["errors"],
        "foreign_cpu": round(foreign, 3),
    }


def resource_children() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory_mb(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_full_info().pss
        except psutil.Error:
            continue
    return round(total / 1e6)


def measure(
    name: str, url: str, pids: list[int], script: Path, seconds: float, repeats: int
) -> list[dict[str, Any]]:
    window(url, script, 8, min(2.0, seconds), pids)  # warm-up
    rows = []
    for connections in CONNECTIONS:
        runs = [window(url, script, connections, seconds, pids) for _ in range(repeats)]
        row: dict[str, Any] = {"name": name, "connections": connections}
        for key in ("rps", "p50_ms", "p99_ms", "errors", "foreign_cpu"):
            row[key] = round(statistics.median(r[key] for r in runs), 3)
        row["errors"] = sum(int(r["errors"]) for r in runs)
        row["pss_mb"] = memory_mb(pids)
        rows.append(row)
        print(
            f"{name:16} {connections:4} conn {row['rps']:9,.0f}/s  p50 {row['p50_ms']:7.2f} ms  "
            f"p99 {row['p99_ms']:7.2f} ms  errors {row['errors']}  foreign {row['foreign_cpu']:.0%}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ours and FastAPI, one short window")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(ROWS)}")
    parser.add_argument(
        "--peers", type=Path, default=HERE.parent / "build" / "peers",
        help="where `make bench-peers` has put them",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, help="length of a window, whole seconds")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed\n  Debian: apt-get install wrk")
    chosen = args.rows.split(",") if args.rows else list(OWN if args.quick else ROWS)
    unknown = set(chosen) - set(ROWS)
    if unknown:
        raise SystemExit(f"no such row: {', '.join(unknown)}\n  rows: {', '.join(ROWS)}")
    pythons = {n: args.peers / home / "bin" / "python" for n, (home, _) in FOREIGN.items()}
    absent = [n for n in chosen if n in pythons and not pythons[n].exists()]
    if absent:
        print(f"not installed, left out: {', '.join(absent)} (make bench-peers)", flush=True)
    chosen = [n for n in chosen if n not in absent]
    seconds = args.seconds or (1.0 if args.quick else 8.0)
    repeats = 1 if args.quick else 3
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sundog-bench-") as name:
        folder = Path(name)
        path, (model, signature) = make_model(folder)
        pixels = np.random.default_rng(0).integers(0, 17, (1, 64)).astype(np.float32)
        body = {
            "inputs": [
                {"name": "pixels", "shape": [1, 64], "datatype": "FP32",
                 "data": pixels.reshape(-1).tolist()},
            ]
        }  # fmt: skip
        import torch

        expected = model(torch.from_numpy(pixels))["logits"].detach().numpy().reshape(-1)
        (folder / "body.json").write_text(json.dumps(body))
        script = folder / "post.lua"
        for row in chosen:
            if row in FOREIGN:
                opened = foreign_row(row, folder, pythons[row])
            elif row in ("sundog", EDGE):
                opened = sundog_row(folder, path, signature, 2 if row == EDGE else 1)
            else:
                opened = peer_row(row, path)
            try:
                with opened as there:
                    check_answer(there, body, expected)
                    lines = [f'wrk.headers["{k}"] = "{v}"' for k, v in there.headers.items()]
                    script.write_text(LUA % ("\n".join(lines), folder / "body.json"))
                    rows += measure(row, there.url, there.pids, script, seconds, repeats)
            except (SystemExit, httpx.HTTPError) as error:
                # Of a peer: the others are still worth a number.
                if row in (*OWN, EDGE):
                    raise
                print(f"{row}: left out: {error}", flush=True)
                absent.append(row)
    result = {
        "format": 1, "benchmark": "gateway", "machine": machine(), "quick": args.quick,
        "seconds": seconds, "repeats": repeats, "left_out": absent, "rows": rows,
    }  # fmt: skip
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {args.json}")


if __name__ == "__main__":
    main()
