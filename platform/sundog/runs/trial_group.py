"""A trial whose loop runs on several workers: a run within the sweep, on Ray Train as any other run.

The trial's own process reserves nothing for itself: it starts the workers in the places that its
placement group holds, hands what they report on to Tune, and ends them when it ends.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sundog.clock import WALL
from sundog.errors import Diverged, RunError
from sundog.rayapi.train_channel import Channel
from sundog.rayapi.train_slot import SLOT
from sundog.runs.driver import begun
from sundog.runs.resizing import RunResizer
from sundog.runs.trial import (
    NoMetric,
    Reporter,
    kept_by,
    loop_of_trial,
    send,
    value_of,
)
from sundog.runs.trial_kept import trial_prefix
from sundog.runs.worker import FAULT, asked, work
from sundog.spec.run import RunSpec
from sundog.spec.sweep import SweepSpec
from sundog.storage.runs import RunFolder

_REPORT, _ANSWER = "report", "answer"
_POLL_S = 0.02
_PATIENCE_S = 10.0  # for an answer, when the controller wants the workers back


def run_group(
    spec: SweepSpec, run: RunSpec, folder: RunFolder, name: str, job: dict[str, Any]
) -> None:
    """The trial `name` on `job["workers"]` workers, inside a Tune function's process.

    Raises what `tune.report` raises when Tune ends the trial; no worker outlives it.
    """
    inside = RunFolder(folder.root, trial_prefix(folder.run_id, name).removeprefix("runs/"))
    channel = Channel(inside.run_id)
    channel.clear()
    config = {
        "spec": run.model_dump(mode="json"), "sweep": job["sweep"], "folder": inside,
        "trial": (folder, name), "log": (folder, f"{name}."), "data": job["data"],
        "directory": job["directory"], "environment": dict(run.env),
        "init_from": job["init_from"],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sundog-train-") as scratch:
        trainer = _trainer(run, inside, config, job, scratch)
        try:
            outcome = _relay(spec, run, channel, begun(trainer.fit))
        finally:
            trainer.end()
            channel.clear()
    if outcome["state"] in ("lost", "yielded"):  # and none of them died: Tune tries again
        raise ConnectionError("its workers lost each other")
    if outcome["state"] != "finished":
        kind = Diverged if outcome.get("diverged") else RunError
        raise kind(str(outcome.get("why")), str(outcome.get("fix") or ""))


def _trainer(
    run: RunSpec, inside: RunFolder, config: dict[str, Any], job: dict[str, Any], scratch: str
) -> Any:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from sundog.rayapi.train_elastic import ElasticTrainer
    from sundog.runs.train import ray_storage, worker_resources

    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # the recipe is in the job's working directory
    runtime_env = {"pip": list(run.requirements)} if run.requirements else None
    size = job["workers"]
    return ElasticTrainer(
        train_trial,
        resizer=TrialResizer.within(run, config, size),
        private=job["environment"],
        placement=ray.util.get_current_placement_group(),
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=size, use_gpu=bool(run.resources.gpus),
            resources_per_worker=worker_resources(run),
        ),
        run_config=RunConfig(
            name=inside.run_id.replace("/", "-"), worker_runtime_env=runtime_env,
            failure_config=FailureConfig(max_failures=run.max_failures),
            **ray_storage(inside.root, inside, scratch),
        ),
    )  # fmt: skip


def _relay(spec: SweepSpec, run: RunSpec, channel: Channel, fitting: Future[Any]) -> dict[str, Any]:
    """Hand each report to Tune and its consent back, until the workers are done; their outcome."""
    from ray.train import TrainingFailedError

    from sundog.runs.train import why_lost

    last = 0
    while not fitting.done():
        wait([fitting], timeout=_POLL_S)
        told = _read(channel, _REPORT)
        if told is None or told["number"] <= last:
            continue
        value_of(spec, told["metrics"])
        send(spec, **told)
        last = told["number"]
        channel.post(_ANSWER, {"number": last})
    fault = _read(channel, FAULT) or {}
    try:
        outcome = fitting.result().return_value
    except TrainingFailedError as error:
        why = why_lost(run, error)[1]
        raise RunError(fault.get("why") or why, fault.get("fix", "")) from None
    if not isinstance(outcome, dict):
        return {"state": "failed", "why": "its workers ended without a result"}
    return {**outcome, "state": "failed", **fault} if fault else outcome


def _read(channel: Channel, topic: str) -> dict[str, Any] | None:
    with suppress(RuntimeError):  # the GCS may be away for a moment
        return channel.read(topic)
    return None


# --- inside a worker ------------------------------------------------------------------------------


def train_trial(config: dict[str, Any]) -> dict[str, Any]:
    """The training function of a trial's worker."""
    return work(config, build_trial)


def build_trial(config: dict[str, Any], run: RunSpec, inside: RunFolder) -> Any:
    """The loop of a trial's worker, which saves and reports as a trial does."""
    spec = SweepSpec.model_validate(config["sweep"])
    folder, name = config["trial"]
    kept = kept_by(spec, folder, name)
    loop = loop_of_trial(run, kept, config, asked=asked())
    loop.after_evaluation = GroupReporter(spec, kept, loop.saver, Channel(inside.run_id))
    return loop


class GroupReporter(Reporter):
    """The first worker reports for all; all wait until the trial's process says to go on."""

    def __init__(self, spec: SweepSpec, kept: Any, saver: Any, channel: Channel) -> None:
        super().__init__(spec, kept, saver)
        self._channel = channel

    def __call__(self, loop: Any) -> None:
        from sundog.runs.loop import YIELD

        number = -(-loop.step // loop.evaluate_every)
        if loop.exchange.rank == 0:
            self._kept.refresh()  # another one may have been the first worker until now
            nodes = [where["node_id"] for where in loop.tell.placed]
            self._channel.post(_REPORT, {**self._worth(loop, number), "nodes": nodes})
        asked_s: float | None = None
        while not self._answered(number):
            if SLOT.ask >= YIELD:
                asked_s = asked_s or WALL.monotonic_s()
                if WALL.monotonic_s() - asked_s > _PATIENCE_S:
                    return
            WALL.sleep(_POLL_S)

    def _worth(self, loop: Any, number: int) -> dict[str, Any]:
        try:
            return self.keep(loop)
        except NoMetric:  # the trial's process will find the same, and tell everybody
            return {"metrics": dict(loop.metrics), "number": number}

    def _answered(self, number: int) -> bool:
        """RunError when the first worker could not report."""
        if fault := _read(self._channel, FAULT):
            raise RunError(fault["why"], fault["fix"])
        answer = _read(self._channel, _ANSWER)
        return answer is not None and answer["number"] >= number


@dataclass(frozen=True)
class TrialResizer(RunResizer):
    """A run's, within the places that the trial has."""

    @classmethod
    def within(cls, run: RunSpec, config: dict[str, Any], size: int) -> TrialResizer:
        of = RunResizer.of(run, config)
        return cls(min(of.low, size), size, of.flags, config)

    def prepare(self) -> None:
        os.environ.update(self.config["environment"])
        run = RunSpec.model_validate(self.config["spec"])
        SLOT.kept = build_trial(self.config, run, self.config["folder"])
