"""`make demo`: the whole path on this machine, step by step, with what each took.

Every step uses what a user would use: Ray's job API, a Serve config file, HTTP. Nothing here knows
a shortcut.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import psutil

from sundog.cli.output import Output
from sundog.clock import WALL
from sundog.errors import NotFound, RunError, SundogError
from sundog.rayapi.cluster import quiet
from sundog.rayapi.local import LocalRay
from sundog.security.tls import client_context

_NEEDED = ("jobs/train.py", "jobs/specs/digits.yaml", "deployments/digits.yaml")
_CLIENTS = 16
_PASSES = 8


@dataclass(frozen=True)
class Step:
    name: str
    said: str
    seconds: float


def run_demo(keep: bool, out: Output) -> None:
    """A Ray of its own, the steps, the receipt; nothing is left running. Raises SundogError."""
    for path in _NEEDED:
        if not Path(path).is_file():
            raise NotFound(f"{path} is not here", "run the demo from a checkout of the repository")
    folder = Path(tempfile.mkdtemp(prefix="sundog-demo-"))
    try:
        start = WALL.monotonic_s()
        with LocalRay(folder.as_uri(), object_store_bytes=512 * 2**20) as ray:
            demo = Demo(ray, out)
            demo.steps.append(Step("ray", "", WALL.monotonic_s() - start))
            demo.run(drill=True)
            demo.receipt()
    finally:
        if keep:
            out.say(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


class Demo:
    """The steps, on a running local Ray."""

    def __init__(self, ray: LocalRay, out: Output | None = None) -> None:
        self.ray = ray
        self.out = out or Output(as_json=False)
        self.steps: list[Step] = []
        self._peak_bytes = 0
        os.environ.update(ray.endpoints.env())
        from sundog.storage.root import open_root

        self._root = open_root(ray.endpoints.root)

    def run(self, drill: bool) -> None:
        import ray

        self.out.say(
            f"sundog demo · Ray {ray.__version__} on this machine ({self.ray.num_cpus} CPUs) · "
            f"storage {self._root.url}"
        )
        with _beside(self._observe_memory, every_s=2.0):
            self._step("1 ingest", self._ingest)
            self._step("2 train", self._train)
            self._step("3 sweep", self._sweep)
            self._step("4 register", self._register)
            self._step("5 deploy", self._deploy)
            self._step("6 infer", self._infer)
            if drill:
                self._step("drill", self._drill)

    def _step(self, name: str, body: Callable[[], str]) -> None:
        start = WALL.monotonic_s()
        try:
            said = body()
        except SundogError as error:
            raise type(error)(f"demo step '{name}' failed: {error.message}", error.fix) from error
        step = Step(name, said, WALL.monotonic_s() - start)
        self.steps.append(step)
        self.out.say(
            f"  {step.name:<11} {step.said:<92} {step.seconds:5.1f} s  {step.seconds / 3600:.4f} node-h"
        )

    def receipt(self) -> None:
        """What it took and how to go on."""
        total = sum(step.seconds for step in self.steps)
        self.out.say(
            f"  {'cost':<11} {total:.0f} s, {total / 3600:.3f} node-hours (this machine has no price), "
            f"start of Ray included · at most {self._peak_bytes / 2**30:.1f} GiB of memory"
        )
        self.out.say("\nNext: `make up`, then in another shell here")
        self.out.say('  eval "$(.venv/bin/sundog env)"')
        self.out.say(
            "  curl -s $SUNDOG_GATEWAY/v2/models/digits/infer -d @deployments/examples/digits.json"
        )
        self.out.data(
            {
                "steps": [
                    {"name": s.name, "said": s.said, "seconds": round(s.seconds, 3),
                     "node_hours": round(s.seconds / 3600, 6)}
                    for s in self.steps
                ],
                "seconds": total, "node_hours": total / 3600, "peak_pss_bytes": self._peak_bytes,
            }
        )  # fmt: skip

    # -- the steps ---------------------------------------------------------------------------

    def _ingest(self) -> str:
        from sundog.storage.datasets import open_dataset

        # Writing data needs no cluster, so this is the plain script.
        done = subprocess.run(
            [sys.executable, "jobs/ingest.py", "--root", self._root.url],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RunError(f"jobs/ingest.py: {done.stderr.strip()[-300:]}", "is the disk full?")
        data = open_dataset(self._root, "digits@latest")
        rows = sum(split.rows for split in data.splits.values())
        return f"{rows:,} rows of handwritten digits → data {data.ref}"

    def _train(self) -> str:
        record = self._job("train", "jobs/specs/digits.yaml")
        metrics = record["metrics"]
        return (
            f"{record['workers']} workers · step {record['step']}/{record['steps']} · "
            f"loss {record['loss']:.3f} · "
            f"{_shown(metrics, 'accuracy')} · {record['samples_s']:,.0f} samples/s"
        )

    def _sweep(self) -> str:
        record = self._job("sweep", "jobs/specs/digits-sweep.yaml")
        trials = record["trials"]
        stopped = sum(1 for t in trials if t.get("state") == "stopped")
        return f"{len(trials)} trials · {stopped} stopped early · {_shown(record['metrics'], 'accuracy')}"

    def _register(self) -> str:
        from sundog.storage.models import Registry

        registry = Registry(self._root)
        version = registry.get("digits@champion")
        faults = registry.verify(version.ref)
        if faults:
            raise SundogError(f"{version.ref} is damaged: {faults[0]}", "is the disk healthy?")
        taken = ", ".join(
            f"{t.name} {t.datatype} {list(t.shape)}" for t in version.signature.inputs
        )
        return (
            f"{version.ref} (champion) from {version.lineage['run']}, takes {taken}, "
            f"{len(version.files)} files verified"
        )

    def _deploy(self) -> str:
        from sundog.cli.services import wait_until_ready
        from sundog.control import serve_files

        serve_files.deploy_file("deployments/digits.yaml", self.ray.endpoints.dashboard)
        wait_until_ready("digits", 90)
        return f"digits behind {self.ray.endpoints.gateway}"

    def _infer(self) -> str:
        from sundog.storage.datasets import open_dataset

        table = open_dataset(self._root, "digits@latest").table("test")
        rows = table.column("pixels").to_pylist()
        bodies = [_request_body(row) for row in rows]
        address = self.ray.endpoints.gateway
        answers, latencies, _ = _ask(address, bodies)
        right = sum(
            int(a == b) for a, b in zip(answers, table.column("label").to_pylist(), strict=True)
        )
        _, _, seconds = _ask(address, bodies * _PASSES, clients=_CLIENTS)
        cut = quantiles(latencies, n=100)
        return (
            f"{len(rows)} held-out images · accuracy {right / len(rows):.3f} · p50 {cut[49] * 1e3:.1f} ms · "
            f"p99 {cut[98] * 1e3:.1f} ms · {len(bodies) * _PASSES / seconds:,.0f}/s from {_CLIENTS} clients"
        )

    def _drill(self) -> str:
        import ray

        from sundog.runs import drill, place
        from sundog.storage.runs import open_run

        place.connect()
        struck: dict[str, Any] = {}

        def kill_one(record: dict[str, Any]) -> None:
            placed, steps = record.get("placed") or [], record.get("steps") or 0
            if struck or len(placed) < 2 or (record.get("step") or 0) <= steps // 5:
                return
            since_s = WALL.now_s()
            try:
                target = drill.choose(record, drill.KILL_WORKER)
                drill.strike(target)
                struck.update(target=target, since_s=since_s)
            except RunError as error:
                struck["error"] = error

        try:
            record = self._job("train", "jobs/specs/digits-recovery.yaml", watch=kill_one)
        finally:
            ray.shutdown()  # before Ray itself ends: it would take a connected driver along
        if "target" not in struck:
            raise struck.get("error") or RunError(
                "the run ended before a worker could be killed", "is the machine busy?"
            )
        folder = open_run(self._root, record["run_id"])
        receipt = drill.watch(folder, struck["target"], struck["since_s"], timeout_s=5)
        if receipt.lost or receipt.duplicated:
            raise RunError(f"{receipt.lost} samples lost, {receipt.duplicated} duplicated", "a bug")
        return (
            f"1 of {receipt.workers[0]} workers killed → next step in {receipt.took_s:.1f} s · "
            f"{receipt.steps_back} steps again · {receipt.lost} samples lost, "
            f"{receipt.duplicated} duplicated of {receipt.samples:,}"
        )

    # -- how ---------------------------------------------------------------------------------

    def _job(
        self, kind: str, spec: str, watch: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """Run `jobs/<kind>.py` through Ray's job API; its run's record at the end."""
        from sundog.storage.runs import new_run

        folder = new_run(self._root, Path(spec).stem)
        with _beside(lambda: watch(folder.record()) if watch else None, every_s=0.2):
            self._submit(f"python jobs/{kind}.py {spec} --run-id {folder.run_id}")
        record: dict[str, Any] = folder.record()
        return record

    def _submit(self, entrypoint: str) -> None:
        from sundog.runs import client

        quiet()
        dashboard = self.ray.endpoints.dashboard
        job_id = client.submit(entrypoint, address=dashboard, working_dir=".")
        for line in client.follow(job_id, address=dashboard, poll_s=0.2):
            # Ray's own words: that the job is being set up, and about the worker we killed
            if "job_manager.py" not in line and "(raylet)" not in line:
                self.out.say(f"      {line[:150]}")

    def _observe_memory(self) -> None:
        self._peak_bytes = max(self._peak_bytes, summed_pss_bytes(self.ray))


def summed_pss_bytes(ray: LocalRay) -> int:
    """Memory of Ray and this process: PSS, which counts a shared page once."""
    total = 0
    for process in [*ray.processes(), psutil.Process()]:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(
            (int(row.split()[1]) for row in rollup.splitlines() if row.startswith("Pss:")), 0
        )
    return total * 1024


class _beside:
    """Calls `look` beside the block, every so often."""

    def __init__(self, look: Callable[[], None], every_s: float) -> None:
        self._look = look
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._look()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _shown(metrics: dict[str, float], *names: str) -> str:
    return " · ".join(f"{n} {metrics[n]:.3f}" for n in names if n in metrics)


def _request_body(pixels: list[float]) -> bytes:
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, len(pixels)], "data": pixels}
    return json.dumps({"inputs": [tensor]}).encode()


def _ask(
    gateway: str, bodies: list[bytes], clients: int = 1
) -> tuple[list[int], list[float], float]:
    """Classes answered, seconds of each request, and seconds in all, over keep-alive connections."""
    answers: list[int] = [-1] * len(bodies)
    latencies: list[float] = [0.0] * len(bodies)
    faults: list[str] = []
    address = urlsplit(gateway)
    trusted = client_context() if address.scheme == "https" else None

    def work(mine: range) -> None:
        connection = (
            http.client.HTTPConnection(address.netloc, timeout=30)
            if trusted is None
            else http.client.HTTPSConnection(address.netloc, timeout=30, context=trusted)
        )
        for i in mine:
            start = WALL.monotonic_s()
            connection.request(
                "POST", "/v2/models/digits/infer", bodies[i], {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            text = answer.read()
            latencies[i] = WALL.monotonic_s() - start
            if answer.status != 200:
                faults.append(f"{answer.status} {text[:200]!r}")
                return
            scores = json.loads(text)["outputs"][0]["data"]
            answers[i] = max(range(len(scores)), key=scores.__getitem__)
        connection.close()

    threads = [
        threading.Thread(target=work, args=(range(n, len(bodies), clients),))
        for n in range(clients)
    ]
    start = WALL.monotonic_s()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise SundogError(f"the gateway answered {faults[0]}", "its log says why: sundog services")
    return answers, latencies, WALL.monotonic_s() - start
