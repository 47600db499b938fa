"""Seconds from `kill -9` of a training worker to the next step, ours beside Ray Train's own restart.

Starts a Ray of its own on this machine, trains the digits with two workers (gloo, CPU), kills one,
and reads what the run's own record says. A figure holds up to half a second of reporting interval.

    python benchmarks/recovery.py --quick --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from sundog.rayapi.local import LocalRay
from sundog.storage.root import Root, open_root
from sundog.storage.runs import RunFolder

REPO = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WAIT_S = 240.0


def submit(ray: LocalRay, work: Path, run_id: str, stock: bool) -> None:
    env = {"env_vars": {"SUNDOG_STOCK_TRAIN": "1"} if stock else {}}
    subprocess.run(
        [BIN / "ray", "job", "submit", "--no-wait", "--working-dir", ".", "--runtime-env-json",
         json.dumps(env), "--", "python", "jobs/train.py", "run.yaml", "--run-id", run_id],
        cwd=work, env=ray.environment(), check=True, capture_output=True, timeout=120,
    )  # fmt: skip


def until(what: str, found: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not found():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not happen in {WAIT_S:.0f} s")
        time.sleep(0.1)


def at_step(root: Root, run_id: str, step: int) -> bool:
    record = RunFolder(root, run_id).record() if root.exists(f"runs/{run_id}/record.json") else {}
    return (record.get("step") or 0) >= step


def workers(ray: LocalRay) -> list[psutil.Process]:
    out = []
    for process in ray.processes():
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                out.append(process)
        except psutil.Error:
            continue
    return out


def once(ray: LocalRay, work: Path, run_id: str, stock: bool) -> dict[str, float]:
    """One run, one kill; what its events say."""
    root = open_root(ray.endpoints.root)
    submit(ray, work, run_id, stock)
    until("training", lambda: at_step(root, run_id, 150))
    workers(ray)[0].kill()
    run = RunFolder(root, run_id)

    def ended() -> bool:
        return run.record()["state"] in ("finished", "failed")

    until("the end of the run", ended)
    if run.record()["state"] == "failed":
        raise SystemExit(run.record()["message"])
    events = {e["event"]: e for e in run.events()}
    out = {
        "kill_to_next_step_s": events["run.recovered"]["took_s"],
        "steps_computed_again": events["run.recovered"]["steps_back"],
    }
    if "run.resized" in events:
        out["pause_to_grow_s"] = events["run.resized"]["took_s"]
    return out


def summary(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    names = sorted({name for one in found for name in one})
    out = {}
    for name in names:
        values = sorted(one[name] for one in found if name in one)
        p95 = values[min(len(values) - 1, round(0.95 * (len(values) - 1)))]
        out[name] = {"median": statistics.median(values), "p95": p95, "n": len(values)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one run, ours only")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        subprocess.run(["cp", "-r", str(REPO / "jobs"), str(work / "jobs")], check=True)
        spec = yaml.safe_load((REPO / "jobs/specs/digits-recovery.yaml").read_text())
        (work / "run.yaml").write_text(yaml.safe_dump(spec))
        with LocalRay(f"file://{work}/root", num_cpus=2, object_store_bytes=256 << 20) as ray:
            subprocess.run([sys.executable, str(REPO / "jobs/ingest.py"), "--root",
                            ray.endpoints.root], env=ray.environment(), check=True)  # fmt: skip
            kinds = [("sundog", False)] + ([] if arguments.quick else [("ray train", True)])
            for name, stock in kinds:
                count = 1 if arguments.quick else arguments.repeat
                found = [
                    once(ray, work, f"{name.replace(' ', '-')}-{i}", stock) for i in range(count)
                ]
                result[name] = summary(found)
                print(name, json.dumps(result[name]), flush=True)
    if arguments.json:
        cpu = next(
            (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines()
             if x.startswith("model name")), platform.processor(),
        )  # fmt: skip
        machine = {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(),
                   "load": os.getloadavg()[0]}  # fmt: skip
        out = {"policies": result, "machine": machine, "backend": "gloo, CPU", "fault": "kill -9"}
        arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
