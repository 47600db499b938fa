"""What runs inside a Ray Train worker: builds the loop, joins the group, reports and saves.

The same function on every rank. An expected failure ends all ranks in one agreed outcome, so Ray
Train does not retry what would fail again; only a lost worker raises.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TextIO

from sundog import telemetry
from sundog.clock import WALL
from sundog.errors import SundogError
from sundog.rayapi.train_channel import Channel
from sundog.spec.run import RunSpec
from sundog.storage.root import Root
from sundog.storage.runs import RunFolder

_TELL_EVERY_S = 0.5
_LOG_EVERY_S = 1.0
_EVENTS = {
    "checkpoint": telemetry.RUN_CHECKPOINT,
    "skipped": telemetry.RUN_CHECKPOINT_SKIPPED,
}


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The training function of a worker. `config` is what `train.py` made; returns the outcome."""
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    os.environ.update(config["environment"])
    folder: RunFolder = config["folder"]
    with WorkerLog(folder, rank):
        from sundog.runs.exchange import Alone, Exchange, Group

        spec = RunSpec.model_validate(config["spec"])
        exchange: Exchange = Alone() if world == 1 else Group(exact=spec.exact)
        return run_loop(config, spec, folder, exchange)


def run_loop(
    config: dict[str, Any], spec: RunSpec, folder: RunFolder, exchange: Any
) -> dict[str, Any]:
    """Build, join, run. An error that would come again is an outcome, not an exception."""
    from sundog.runs.exchange import PeerLost

    loop, fault = None, ("", "")
    try:
        loop = build_loop(config, spec, folder, exchange)
    except SundogError as error:
        fault = (error.message, error.fix)
    # All ranks compare notes before the first collective that one of them would never reach.
    faults = [f for f in exchange.gather(fault) if f[0]]
    if faults or loop is None:
        return {
            "state": "failed",
            "step": 0,
            "metrics": {},
            "why": faults[0][0],
            "fix": faults[0][1],
        }
    try:
        loop.join(exchange)
        return asdict(loop.run())
    except PeerLost:
        raise
    except SundogError as error:
        why = {"why": error.message, "fix": error.fix}
        return {"state": "failed", "step": loop.step, "metrics": loop.metrics, **why}


def build_loop(config: dict[str, Any], spec: RunSpec, folder: RunFolder, exchange: Any) -> Any:
    import torch

    from sundog.runs.interval import Cadence
    from sundog.runs.loop import Loop
    from sundog.runs.saver import Saver

    channel = Channel(folder.run_id)
    recipe = open_recipe(folder.root, spec, config["data"], config["directory"])
    device = "cuda" if spec.resources.gpus and torch.cuda.is_available() else "cpu"
    loop = Loop(spec, recipe, device=device, tell=Teller(channel, exchange.rank))

    def note(event: str, fields: Mapping[str, Any]) -> None:
        folder.event(_EVENTS[event], **fields)
        if event == "skipped":
            print(f"{fields['why']}; going on from the one before", flush=True)

    loop.saver = Saver(
        folder.root, f"runs/{folder.run_id}", keep=spec.checkpoint.keep,
        cadence=Cadence(spec.checkpoint.every, exchange.world), note=note,
    )  # fmt: skip
    return loop


def open_recipe(root: Root, spec: RunSpec, data: str | None, directory: str | None) -> Any:
    """The recipe of the spec with its dataset, the same on the driver and on every worker."""
    from sundog.runs.recipe import build
    from sundog.storage.datasets import open_dataset

    dataset = open_dataset(root, data) if data else None
    return build(spec.recipe, dataset, spec.params, directory)


class Teller:
    """Posts rank 0's progress for the driver, at a bounded rate."""

    def __init__(self, channel: Channel, rank: int) -> None:
        self._channel, self._rank = channel, rank
        self._last_s = float("-inf")

    def __call__(self, progress: Any) -> None:
        now_s = WALL.monotonic_s()
        last_step = progress.step == progress.steps
        if self._rank != 0 or (now_s - self._last_s < _TELL_EVERY_S and not last_step):
            return
        self._last_s = now_s
        message = asdict(progress) | {"metrics": dict(progress.metrics), "at_s": WALL.now_s()}
        with suppress(RuntimeError):  # the GCS may be away for a moment; the next one arrives
            self._channel.post("progress", message)


class WorkerLog(io.TextIOBase):
    """Copies what a worker prints into the run's log in the storage root, about once a second."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._out: TextIO = sys.stdout
        self._kept: list[str] = []
        self._last_s = WALL.monotonic_s()

    def __enter__(self) -> WorkerLog:
        self._before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self
        self._kept.append(f"worker {self._rank} on {os.uname().nodename}, pid {os.getpid()}\n")
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
