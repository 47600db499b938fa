"""Seconds from a fault to the next step, stage by stage: a worker, a node, a notice, the driver, the head.

Starts a Ray of several one-CPU nodes on this machine (gloo, CPU), trains with two workers, and does
real things to it: `kill -9` of a worker, of a node's raylet, of the driver, of the head (a new cluster
is started, and the same run id), and a drain with a deadline through Ray's own API. Reads what the
run's record says. Beside it, on request, Ray Train with its defaults: its workers all start again
(`--stock`, minutes).

    python benchmarks/recovery.py --kinds worker notice --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from this_machine import machine

from sundog.rayapi.local import write_token
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder

REPO = Path(__file__).resolve().parents[1]
WAIT_S = 240.0
MEMORY = 128 << 20
KINDS = ("worker", "raylet", "notice", "driver", "head")
RECIPE = '''
import time
import numpy as np, torch
from sundog import Columns, Recipe

class Steady(Recipe):
    """A linear model whose steps take 20 ms each."""
    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    def dataset(self, split):
        if split != "train":
            raise KeyError(split)
        x = torch.tensor(np.random.default_rng(1).normal(size=(4096, 8)), dtype=torch.float32)
        return Columns(input=x, y=x.sum(1, keepdim=True))
    def loss(self, model, batch, rng):
        time.sleep(0.005)
        return torch.nn.functional.mse_loss(model(batch["input"]), batch["y"])
    def optimizer(self, params):
        return torch.optim.AdamW(params, lr=1e-3)
    def example_inputs(self):
        return {"input": torch.zeros(2, 8)}
'''


class Field:
    """A cluster with a head without CPUs and two nodes of one CPU, and one run on it."""

    def __init__(self, work: Path, stock: bool) -> None:
        self.work, self.stock = work, stock
        self.root = open_root(str(work / "root"))
        self.driver: subprocess.Popen[bytes] | None = None
        self.open()

    def open(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": MEMORY}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.node(), self.node()]

    def node(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

    def start(self, run_id: str) -> None:
        self.run = RunFolder(self.root, run_id)
        extra = {"RAY_ADDRESS": self.cluster.address, "SUNDOG_ROOT": str(self.work / "root")}
        if self.stock:
            extra |= {"SUNDOG_STOCK_TRAIN": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2"}
        self.log = (self.work / f"{run_id}.log").open("ab")
        self.driver = subprocess.Popen(
            [sys.executable, str(REPO / "jobs/train.py"), "run.yaml", "--run-id", run_id],
            cwd=self.work, env={**os.environ, **extra}, stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def stop(self) -> None:
        if self.driver and self.driver.poll() is None:
            self.driver.terminate()
            self.driver.wait(60)

    def record(self) -> dict[str, Any]:
        exists = self.root.exists(f"runs/{self.run.run_id}/record.json")
        return self.run.record() if exists else {}

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in self.run.events() if e["event"] in names]

    def until(self, what: str, found: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WAIT_S
        while not (value := found()):
            ended = self.driver is not None and self.driver.poll() is not None
            if ended or time.monotonic() > deadline:
                raise SystemExit(f"{what} did not happen\n{self.tail()}")
            time.sleep(0.05)
        return value

    def tail(self) -> str:
        """The last words of the driver and of all workers."""
        driver = (self.work / f"{self.run.run_id}.log").read_text()
        return f"{driver[-2000:]}\n{''.join(self.run.logs())[-4000:]}"

    def steady(self, more: int) -> None:
        """Two workers, so many steps further than now."""
        since = self.record().get("step") or 0

        def there() -> bool:
            record = self.record()
            return record.get("workers") == 2 and (record.get("step") or 0) > since + more

        self.until("steady training", there)


def workers(of: Any = None) -> list[psutil.Process]:
    """Training workers of this cluster; `of`: of that node's raylet only."""
    parent = psutil.Process(of.all_processes["raylet"][0].process.pid if of else None)
    found = []
    for process in parent.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def strike(field: Field, kind: str) -> dict[str, Any]:
    """One fault, and what the run says of it once it is over."""
    changes = ("run.recovered", "run.drained")
    before, grown = len(field.events(*changes)), len(field.events("run.resized"))
    if kind == "driver":
        return strike_driver(field)
    if kind == "head":
        return strike_head(field)
    index = next(i for i, n in enumerate(field.nodes) if workers(n))
    struck = time.time()
    if kind == "worker":
        workers(field.nodes[index])[0].kill()
    elif kind == "raylet":
        field.nodes[index].kill_raylet(check_alive=False)
    else:
        from sundog.rayapi.drain import Gcs

        Gcs(field.cluster.address).drain(field.nodes[index].node_id, struck + 30, "benchmark")
    if field.stock and kind != "worker":
        if kind == "notice":  # what the cloud does at the end of a notice
            time.sleep(8)
            field.nodes[index].kill_raylet(check_alive=False)
        field.nodes[index] = field.node()
    found = field.until("recovery", lambda: field.events(*changes)[before:])[0]
    if not field.stock and kind != "worker":
        field.cluster.remove_node(field.nodes[index], allow_graceful=kind == "notice")
        field.nodes[index] = field.node()
    out = {
        "pause_s": found["took_s"], "steps_again": found["steps_back"],
        "fault_to_step_s": round(found["at_s"] - struck, 3),
        **{f"stage_{name}_s": s for name, s in found.get("stages", {}).items()},
    }  # fmt: skip
    if not field.stock:
        resized = field.until("growing", lambda: field.events("run.resized")[grown:])[0]
        out["pause_to_grow_s"] = resized["took_s"]
        out["fault_to_full_size_s"] = round(resized["at_s"] - struck, 3)
    return out


def strike_driver(field: Field) -> dict[str, Any]:
    """The driver is killed and the same run id started again: workers, controller, all anew."""
    assert field.driver is not None
    step = field.record()["step"]
    struck = time.time()
    field.driver.kill()
    field.driver.wait()
    while workers():
        time.sleep(0.02)
    return begun_again(field, step, struck, "workers_gone")


def strike_head(field: Field) -> dict[str, Any]:
    """The GCS is killed, and with it all that ran: a new cluster, and the same run id."""
    assert field.driver is not None
    step = field.record()["step"]
    struck = time.time()
    field.cluster.head_node.kill_gcs_server(check_alive=False)
    field.driver.kill()
    field.driver.wait()
    field.cluster.shutdown()
    while workers():
        time.sleep(0.02)
    field.open()
    return begun_again(field, step, struck, "cluster_up")


def begun_again(field: Field, step: int, struck: float, stage: str) -> dict[str, Any]:
    """The same run id is submitted now, when `stage` is over."""
    gone_s = time.time() - struck
    field.start(field.run.run_id)
    first = field.until(
        "the first step",
        lambda: [e for e in field.events("run.progress") if e["at_s"] > struck + 0.5],
    )[0]
    resumed = next(e for e in field.events("run.resumed") if e["at_s"] > struck)
    return {
        "fault_to_step_s": round(first["at_s"] - struck, 3),
        f"stage_{stage}_s": round(gone_s, 3),
        "stage_lease_and_driver_s": round(resumed["at_s"] - struck - gone_s, 3),
        "stage_workers_started_s": round(first["at_s"] - resumed["at_s"], 3),
        "steps_again": max(0, step + 1 - first["step"]),
    }


def summary(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    names = sorted({name for one in found for name in one})
    out = {}
    for name in names:
        values = sorted(one[name] for one in found if name in one)
        p95 = values[min(len(values) - 1, round(0.95 * (len(values) - 1)))]
        out[name] = {"median": statistics.median(values), "p95": p95, "n": len(values)}
    return out


def measure(kinds: list[str], repeat: int, stock: bool) -> dict[str, Any]:
    result = {}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        (work / "steady.py").write_text(RECIPE)
        spec = {"run": "r", "recipe": "steady:Steady", "workers": 2 if stock else "1..2",
                "batch": 64, "micro_batch": 8, "steps": 10**7, "max_failures": -1,
                "checkpoint": {"every": "5s", "keep": 2}}  # fmt: skip
        (work / "run.yaml").write_text(yaml.safe_dump(spec))
        field = Field(work, stock)
        try:
            field.start("stock" if stock else "sundog")
            for kind in kinds:
                found = []
                for _ in range(repeat):
                    field.steady(50)
                    found.append(strike(field, kind))
                    print(kind, json.dumps(found[-1]), flush=True)
                result[kind] = summary(found)
        finally:
            field.stop()
            field.cluster.shutdown()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, help="faults of a kind; 5, with --quick 1")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help=f"all: {' '.join(KINDS)}")
    parser.add_argument("--stock", action="store_true", help="Ray Train's defaults beside it")
    parser.add_argument("--quick", action="store_true", help="one fault a kind: worker, notice")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    kinds = arguments.kinds or (["worker", "notice"] if arguments.quick else list(KINDS))
    repeat = arguments.repeat or (1 if arguments.quick else 5)
    # Ray's switch that keeps it on loopback forbids a second node.
    os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
    # By default Ray's workers give way to all else: beside a busy machine's other work they would
    # take minutes to start, which says nothing of a node of one's own.
    os.environ |= {"RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as home:
        token = write_token(Path(home, "token"))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        policies = {"sundog": measure(kinds, repeat, False)}
        if arguments.stock:
            stock = [k for k in kinds if k not in ("driver", "head")]
            policies["ray train"] = measure(stock, max(1, repeat // 2), True)
    print(json.dumps(policies, indent=1))
    if arguments.json:
        out = {"policies": policies, "machine": machine(), "backend": "gloo, CPU"}
        arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
