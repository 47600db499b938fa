"""What runs inside a Ray Train worker: builds the loop, joins the group, reports and saves.

The same function on every rank. An expected failure ends all ranks in one agreed outcome, so Ray
Train does not retry what would fail again; only a lost worker raises.
"""

from __future__ import annotations

import io
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TextIO

from sundog import telemetry
from sundog.clock import WALL
from sundog.errors import SundogError
from sundog.rayapi.train_channel import Channel
from sundog.rayapi.train_slot import LONGEST_SILENCE_S, SLOT
from sundog.spec.run import RunSpec
from sundog.storage.root import Root
from sundog.storage.runs import RunFolder

FAULT = "fault"  # the topic under which a worker says why it left its group
STOP_ASKED = "stop"  # and the driver, that the run shall end at a step boundary with a checkpoint
_TELL_EVERY_S = 0.5
_LOG_EVERY_S = 1.0
_MEET_S = 30.0
Build = Callable[[dict[str, Any], RunSpec, RunFolder], Any]  # the loop of a worker, not yet joined
_EVENTS = {
    "checkpoint": telemetry.RUN_CHECKPOINT,
    "skipped": telemetry.RUN_CHECKPOINT_SKIPPED,
    "staged": telemetry.RUN_CHECKPOINT_STAGED,
}


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The training function of a worker. `config` is what `train.py` made; returns the outcome."""
    return work(config, build_loop)


def work(config: dict[str, Any], build: Build) -> dict[str, Any]:
    """What every worker does; a trial of a sweep has its log in the sweep's folder."""
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    os.environ.update(config["environment"])
    folder: RunFolder = config["folder"]
    log, before = config.get("log", (folder, ""))
    with WorkerLog(log, f"{before}{rank}"):
        spec = RunSpec.model_validate(config["spec"])
        try:
            exchange = _exchange(folder, spec, rank, world)
            return run_loop(config, spec, folder, exchange, build)
        except _peer_lost() as error:
            if SLOT.token is None:
                raise  # stock Ray Train starts all of us again
            print(f"worker {rank}: {error}; waiting for a new group", flush=True)
            return {"state": "lost", "step": -1, "metrics": {}}


def _peer_lost() -> type[Exception]:
    from sundog.runs.exchange import PeerLost

    return PeerLost


def _exchange(folder: RunFolder, spec: RunSpec, rank: int, world: int) -> Any:
    """The process group of this worker: Ray Train's own, or one for the present token."""
    from sundog.runs.exchange import Alone, Group

    if world == 1:
        return Alone()
    if SLOT.token is None:
        return Group(exact=spec.exact)
    return _meet(folder, spec, rank, world, SLOT.token)


def _meet(folder: RunFolder, spec: RunSpec, rank: int, world: int, token: str) -> Any:
    import ray
    import torch.distributed as dist

    from sundog.runs.exchange import PeerLost, connect

    channel, topic = Channel(folder.run_id), f"store-{token}"
    backend = "nccl" if spec.resources.gpus else "gloo"
    try:
        if rank == 0:
            host = ray.util.get_node_ip_address()
            store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
            channel.post(topic, {"host": host, "port": store.port})
        else:
            found, deadline_s = channel.read(topic), WALL.monotonic_s() + _MEET_S
            while found is None:
                if WALL.monotonic_s() > deadline_s or SLOT.ask:
                    raise PeerLost("the first worker of the group never came")
                WALL.sleep(0.01)
                found = channel.read(topic)
            store = dist.TCPStore(found["host"], found["port"], is_master=False)
        return connect(
            store, rank, world, backend=backend, exact=spec.exact, timeout_s=LONGEST_SILENCE_S
        )
    except RuntimeError as error:
        raise PeerLost(f"the group did not form: {error}") from error


def run_loop(
    config: dict[str, Any], spec: RunSpec, folder: RunFolder, exchange: Any, build: Build
) -> dict[str, Any]:
    """Build (or go on with what this process kept), join, run.

    An error that would come again is an outcome, not an exception.
    """
    from sundog.runs.exchange import PeerLost

    loop, fault, fresh = SLOT.kept, ("", ""), SLOT.kept is None
    try:
        if loop is None:
            loop = build(config, spec, folder)
        loop.tell = Teller(Channel(folder.run_id), exchange.rank, loop)
    except SundogError as error:
        fault = (error.message, error.fix)
    # All ranks compare notes before the first collective that one of them would never reach.
    told = exchange.gather((fault, _whereabouts(), fresh))
    faults = [f for f, *_ in told if f[0]]
    nodes = {where["node_id"] for _, where, _ in told}
    if loop is not None:
        loop.tell.placed = [where for _, where, _ in told]
    if faults or loop is None:
        return {
            "state": "failed",
            "step": 0,
            "metrics": {},
            "why": faults[0][0],
            "fix": faults[0][1],
        }
    try:
        if len(nodes) > 1 and all(new for *_, new in told):
            # A run begins: what its nodes' network is worth should be known before it is paid for.
            links = exchange.probe(device_of(spec))
            if exchange.rank == 0:
                print(
                    f"{len(nodes)} nodes swap gradients at {links.gbyte_s:g} GB/s, "
                    f"{links.latency_ms:g} ms at least (all-reduce)", flush=True,
                )  # fmt: skip
                folder.event(telemetry.RUN_LINKS, nodes=len(nodes), **asdict(links))
        loop.join(exchange)
        if spec.profile and exchange.rank == 0 and loop.trace is None:
            from sundog.runs.profiling import Profiler

            loop.trace = Profiler(folder, spec.profile, loop.steps)
        SLOT.kept = loop if SLOT.token else None
        outcome = asdict(loop.run())
        if SLOT.token:
            exchange.leave()
        return outcome
    except PeerLost:
        raise
    except SundogError as error:
        why = {"why": error.message, "fix": error.fix}
        # Where others cannot be told inside the group, they lose this peer; the driver is told why.
        Channel(folder.run_id).post(FAULT, why)
        exchange.leave()
        return {"state": "failed", "step": loop.step, "metrics": loop.metrics, **why}


def _whereabouts() -> dict[str, Any]:
    """Where this worker is, for the bill and for whoever looks for it."""
    import ray

    return {
        "node_id": ray.get_runtime_context().get_node_id(),
        "host": ray.util.get_node_ip_address(),
        "pid": os.getpid(),
    }


def build_loop(config: dict[str, Any], spec: RunSpec, folder: RunFolder) -> Any:
    import torch

    from sundog.runs.best import Best
    from sundog.runs.fit import settle_micro_batch
    from sundog.runs.initial import kept_own, load_weights
    from sundog.runs.interval import Cadence
    from sundog.runs.kind import settle_kind
    from sundog.runs.loop import Loop
    from sundog.runs.mfu import settle_work
    from sundog.runs.saver import saver_of
    from sundog.runs.stage import Stage

    recipe = open_recipe(folder.root, spec, config["data"], config["directory"])
    device = device_of(spec)
    settle_kind(folder.root, f"runs/{folder.run_id}", spec, torch.device(device))
    spec = settle_micro_batch(
        folder.root, f"runs/{folder.run_id}", spec, recipe, torch.device(device)
    )
    work = settle_work(folder.root, f"runs/{folder.run_id}", spec, recipe, torch.device(device))
    loop = Loop(spec, recipe, device=device, asked=asked(config.get("deadline_s")))
    loop.work = work
    if config.get("init_from"):
        own = load_weights(folder.root, config["init_from"], loop.model)
        print(f"begins with the weights of {config['init_from']}" + kept_own(own), flush=True)
    if spec.checkpoint.best:
        loop.after_evaluation = Best(
            folder.root, f"runs/{folder.run_id}", spec.checkpoint.best,
            lambda fields: folder.event(telemetry.RUN_BEST, **fields),
        )  # fmt: skip

    def note(event: str, fields: Mapping[str, Any]) -> None:
        folder.event(_EVENTS[event], **fields)
        if event == "skipped":
            print(f"{fields['why']}; going on from the one before", flush=True)
        if event == "staged":
            print(f"goes on from step {fields['step']}, which this node's disk had", flush=True)

    loop.saver = saver_of(spec)(
        folder.root, f"runs/{folder.run_id}", keep=spec.checkpoint.keep,
        cadence=Cadence(
            spec.checkpoint.every, spec.workers.high or 1, config["losses_per_worker_hour"]
        ),
        note=note,
        stage=Stage.of(folder.root, f"runs/{folder.run_id}") if spec.layout == "ddp" else None,
    )  # fmt: skip
    return loop


def device_of(spec: RunSpec) -> str:
    """Where a worker of the spec computes: torch's name of the device."""
    import torch

    return "cuda" if spec.resources.gpus and torch.cuda.is_available() else "cpu"


def asked(deadline_s: float | None = None) -> Callable[[], int]:
    """What the loop reads at each step: what the controller asks for, or that time is over."""
    from sundog.runs.loop import GO_ON, SAVE, STOP

    def asked() -> int:
        if deadline_s is not None and WALL.now_s() > deadline_s:
            return STOP
        flag = SLOT.ask
        if flag == SAVE:
            SLOT.ask = GO_ON  # once is meant, not at every step from now on
        return flag

    return asked


def open_recipe(root: Root, spec: RunSpec, data: str | None, directory: str | None) -> Any:
    """The recipe of the spec with its dataset, the same on the driver and on every worker."""
    from sundog.runs.recipe import build
    from sundog.storage.datasets import open_dataset

    dataset = open_dataset(root, data) if data else None
    return build(spec.recipe, dataset, spec.params, directory)


def prepare(config: dict[str, Any]) -> None:
    """What a standby does before it is needed: imports, data and model are there when it joins."""
    os.environ.update(config["environment"])
    spec = RunSpec.model_validate(config["spec"])
    loop = build_loop(config, spec, config["folder"])
    loop.rehearse()
    SLOT.kept = loop


class Teller:
    """Posts rank 0's progress for the driver, at a bounded rate."""

    def __init__(self, channel: Channel, rank: int, loop: Any) -> None:
        self._channel, self._rank, self._loop = channel, rank, loop
        # A new one whenever workers were lost or joined.
        self._group = SLOT.token or uuid.uuid4().hex
        self._left_off = {"step": loop.step, "at_s": loop.stepped_s}  # in the group before
        self._last_s = float("-inf")
        self.placed: list[dict[str, Any]] = []  # by rank

    def __call__(self, progress: Any) -> None:
        from sundog.runs.loop import STOP

        now_s = WALL.monotonic_s()
        last_step = progress.step == progress.steps
        if self._rank != 0 or (now_s - self._last_s < _TELL_EVERY_S and not last_step):
            return
        self._last_s = now_s
        message = asdict(progress) | {"metrics": dict(progress.metrics), "at_s": WALL.now_s()}
        message |= {"group": self._group, "stall_s": self._loop.saver.stall_s}
        message |= {"joined_s": self._loop.joined_s, "left_off": self._left_off}
        message |= {"placed": self.placed, "batch": self._loop.plan.batch}
        message |= {"work": getattr(self._loop, "work", None)}  # of a sample, and the peak
        message |= {"tokens": getattr(self._loop.train, "context", 0)}  # of a sample
        with suppress(RuntimeError):  # the GCS may be away for a moment; the next one arrives
            self._channel.post("progress", message)
            if self._channel.read(STOP_ASKED):
                SLOT.ask = STOP


class WorkerLog(io.TextIOBase):
    """Copies what a worker prints into the run's log in the storage root, about once a second."""

    def __init__(self, folder: RunFolder, rank: int | str) -> None:
        self._folder, self._rank = folder, rank
        self._out: TextIO = sys.stdout
        self._kept = [f"worker {rank} on {os.uname().nodename}, pid {os.getpid()}\n"]
        self._last_s = WALL.monotonic_s()

    def __enter__(self) -> WorkerLog:
        self._before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._before
        self._store()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._out.write(text)
        self._kept.append(text)
        if WALL.monotonic_s() - self._last_s > _LOG_EVERY_S:
            self._store()
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def _store(self) -> None:
        self._last_s = WALL.monotonic_s()
        text, self._kept = "".join(self._kept), []
        if text:
            with suppress(SundogError):  # losing a log line is better than losing the run
                self._folder.append_log(self._rank, text)
                self._folder.flush()
