"""One real fault to a live run, and the receipt of what it cost.

Breaks what it was told to break and measures; the recovery is the run's own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from sundog import telemetry
from sundog.clock import WALL, Clock
from sundog.errors import NotFound, RunError, first_line
from sundog.runs.bill import Prices
from sundog.runs.verify import verify
from sundog.storage.runs import ENDED, RunFolder

NOTICE, KILL_WORKER, KILL_NODE = "notice", "kill-worker", "kill-node"
_CHANGES = (telemetry.RUN_RECOVERED, telemetry.RUN_DRAINED)  # growing is no fault
_POLL_S = 0.2
_LATE_S = 5.0  # what is in the record may be as old as this
NOTICE_S = 120.0
"""How long a notice is before the node goes, as on the clouds."""

# What the cloud does when a notice is over, and Ray does not. In a process of its own: whatever of
# Ray's is left on a node keeps that node from going by itself, and a worker's child ends with it.
_REAPER = """
import os, sys, time
import psutil
if os.fork():
    sys.exit()
pid, born_s, at_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
while psutil.pid_exists(pid) and psutil.Process(pid).create_time() == born_s:
    if time.time() >= at_s:
        os.kill(pid, 9)
    time.sleep(0.2)
"""


@dataclass(frozen=True)
class Target:
    """Which worker the fault hits, and where it is."""

    fault: str
    rank: int
    workers: int
    pid: int
    node_id: str
    host: str

    @property
    def question(self) -> str:
        """What is about to be done, for somebody to agree to."""
        what = {
            NOTICE: f"a preemption notice to node {self.host}, whose Ray is killed in {NOTICE_S:.0f} s",
            KILL_WORKER: f"kill -9 of worker {self.rank} of {self.workers} on {self.host}",
            KILL_NODE: f"kill -9 of Ray on node {self.host}, with all that runs there",
        }
        return f"{what[self.fault]}, for real"


@dataclass(frozen=True)
class Receipt:
    """What one fault cost. Seconds; `usd` None: no price; `samples` as of checkpoint `proven`."""

    fault: str
    event: str
    workers: tuple[int, int]
    took_s: float
    stages: Mapping[str, float]
    steps_back: int
    lost: int
    duplicated: int
    samples: int
    proven: int | None
    node_seconds: float
    usd: float | None

    @property
    def lines(self) -> list[str]:
        before, after = self.workers
        stages = " · ".join(f"{name} {seconds:.2f}" for name, seconds in self.stages.items())
        again = f"{self.steps_back} steps re-computed"
        if self.proven is None:
            proof = "samples not proven yet: no checkpoint since; later: sundog runs verify"
        else:
            proof = (
                f"samples {self.lost} lost, {self.duplicated} duplicated of {self.samples:,}, "
                f"proven at step {self.proven:,}"
            )
        cost = f"{self.node_seconds:.1f} node-seconds, of no known price"
        if self.usd is not None:
            cost = f"${self.usd:.4f}"
        return [
            f"next step after {self.took_s:.2f} s · {before} → {after} workers · {again}",
            *([f"stages in seconds: {stages}"] if stages else []),
            proof,
            f"cost of the drill {cost}",
        ]

    @property
    def data(self) -> dict[str, Any]:
        return asdict(self)


def choose(record: Mapping[str, Any], fault: str, head_node: str | None = None) -> Target:
    """The last worker of a running run; for a node's fault the last one that is not on the head.

    RunError when the run is not running, or there is nobody whom the fault may hit.
    """
    run_id, placed = record.get("run_id"), list(record.get("placed") or [])
    if record.get("state") != "running" or not placed:
        raise RunError(
            f"{run_id} has no workers to break: it is {record.get('state')}",
            "drill a run that is training: sundog runs list",
        )
    able = [
        (rank, worker)
        for rank, worker in enumerate(placed)
        if fault == KILL_WORKER or worker["node_id"] != head_node
    ]
    if not able:
        raise RunError(
            f"all workers of {run_id} are on the head node: without it there is no cluster",
            "on one machine only --kill-worker can be drilled",
        )
    rank, worker = able[-1]
    return Target(
        fault, rank, len(placed), int(worker["pid"]), worker["node_id"], str(worker["host"])
    )


def strike(target: Target, notice_s: float = NOTICE_S) -> None:
    """Do it. Needs a connection to the run's Ray; returns when it is done, not when it is over."""
    import ray

    if target.fault == NOTICE:
        from sundog.rayapi.drain import Gcs

        at_s = WALL.now_s() + notice_s
        _on(target, _kill_at, at_s)  # before Ray takes no work there any more
        Gcs(ray.get_runtime_context().gcs_address).drain(target.node_id, at_s, "sundog drill")
        return
    if target.fault == KILL_WORKER and target.node_id == ray.get_runtime_context().get_node_id():
        try:
            _kill(target.pid)
        except ProcessLookupError:
            raise RunError(f"worker {target.pid} on {target.host} is gone already") from None
        return
    _on(target, _kill, target.pid if target.fault == KILL_WORKER else None)


def _on(target: Target, work: Callable[[Any], None], argument: Any) -> None:
    """Call it on the target's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(target.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(work)
    done = task.remote(argument)
    try:
        ray.get(done, timeout=60)
    except ray.exceptions.GetTimeoutError:
        raise RunError(
            f"nothing could be started on {target.host} to do it", "is the node alive?"
        ) from None
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            why = first_line(error.cause)
            if isinstance(error.cause, ProcessLookupError):
                why = f"worker {target.pid} is gone already"
            raise RunError(f"nothing was done to {target.host}: {why}") from None
        # The node went, and the task with it: that was the fault.


def _kill(pid: int | None) -> None:
    # A worker's parent is the raylet of its node, whose id Ray puts in its environment.
    os.kill(pid if pid is not None else int(os.environ["RAY_RAYLET_PID"]), signal.SIGKILL)


def _kill_at(at_s: float) -> None:
    raylet = int(os.environ["RAY_RAYLET_PID"])
    born_s = repr(psutil.Process(raylet).create_time())
    command = [sys.executable, "-c", _REAPER, str(raylet), born_s, str(at_s)]
    subprocess.run(
        command, check=True, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def watch(
    folder: RunFolder,
    target: Target,
    since_s: float,
    *,
    timeout_s: float = 180.0,
    clock: Clock = WALL,
) -> Receipt:
    """Wait until the run steps again and a checkpoint proves what it consumed.

    RunError when the run ends or does not step again in `timeout_s`. Without a checkpoint in that
    time the receipt comes without its proof.
    """
    deadline_s = clock.monotonic_s() + timeout_s
    change = _change(folder, since_s, deadline_s, clock)
    step = int(change["step"])
    proven = _proof(folder, step, deadline_s, clock)
    nodes = [worker["node_id"] for worker in folder.record().get("placed") or []]
    before, after = (int(n) for n in change["workers"])
    seconds = max(before, after) * float(change["took_s"])
    hourly = Prices(folder.root, clock).usd_hour([*nodes, target.node_id])
    num_nodes = len({*nodes, target.node_id})
    usd = None if hourly is None else hourly * float(change["took_s"]) / 3600
    verdict = verify(folder.root, folder.run_id) if proven is not None else None
    return Receipt(
        fault=target.fault, event=change["event"], workers=(before, after),
        took_s=float(change["took_s"]), stages=change.get("stages") or {},
        steps_back=int(change["steps_back"]),
        lost=verdict.lost if verdict else 0, duplicated=verdict.duplicated if verdict else 0,
        samples=verdict.samples if verdict else 0, proven=verdict.steps if verdict else None,
        node_seconds=min(seconds, num_nodes * float(change["took_s"])), usd=usd,
    )  # fmt: skip


def _change(folder: RunFolder, since_s: float, deadline_s: float, clock: Clock) -> dict[str, Any]:
    while True:
        found: Sequence[dict[str, Any]] = [
            e for e in folder.events() if e["event"] in _CHANGES and e["at_s"] >= since_s
        ]
        if found:
            return found[0]
        state = folder.record().get("state")
        if state in ENDED:
            raise RunError(
                f"{folder.run_id} ended ({state}) before it felt the fault",
                f"see sundog logs {folder.run_id}",
            )
        if clock.monotonic_s() > deadline_s:
            raise _unseen(folder, since_s)
        clock.sleep(_POLL_S)


def _unseen(folder: RunFolder, since_s: float) -> RunError:
    record = folder.record()
    if (record.get("accounted_s") or 0.0) > since_s + _LATE_S:
        return RunError(
            f"{folder.run_id} steps on, at step {record.get('step')}, and no change of its workers "
            "was seen since the fault",
            "wait longer (--wait): a run that cannot do without the node stays on it to the last",
        )
    return RunError(
        f"{folder.run_id} has not stepped again since the fault",
        f"it needs room for {record['spec']['workers']} workers: see sundog logs {folder.run_id}"
        if record.get("spec")
        else f"see sundog logs {folder.run_id}",
    )


def _proof(folder: RunFolder, step: int, deadline_s: float, clock: Clock) -> int | None:
    """The step of a checkpoint at or after `step`, once there is one; None when time is over."""
    from sundog.runs.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder.root, folder.key("checkpoints"))
    while True:
        ended = folder.record().get("state") in ENDED
        if any(s >= step for s in folder.checkpoint_steps()):
            try:
                found = checkpoints.latest()
            except NotFound:
                found = None
            if found is not None and found.step >= step:
                return found.step
        if ended or clock.monotonic_s() > deadline_s:
            return None
        clock.sleep(_POLL_S)
