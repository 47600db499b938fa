"""One training run on Ray Train v2: starts the workers, follows them, recovers, registers the model.

Drives; the arithmetic is `loop.py`'s and what a worker does is `worker.py`'s.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sundog.clock import WALL
from sundog.errors import NotFound, RecipeError, RunBusy, RunError, SundogError
from sundog.rayapi import train_nodes
from sundog.rayapi.train_channel import Channel
from sundog.runs import place
from sundog.runs.best import best_checkpoint
from sundog.runs.checkpoint import Checkpoints
from sundog.runs.driver import Watcher, driving, failed, interruptible, say
from sundog.runs.failures import losses_per_worker_hour
from sundog.runs.follower import Follower, count
from sundog.runs.initial import pin
from sundog.runs.lineage import lineage
from sundog.runs.notify import notified
from sundog.runs.observers import Observers
from sundog.runs.resizing import RunResizer
from sundog.runs.worker import FAULT, STOP_ASKED, open_recipe, train_worker
from sundog.security.secrets import secret_environment
from sundog.spec.base import split_reference
from sundog.spec.batch import BatchSpec
from sundog.spec.run import RunSpec
from sundog.storage.root import Root
from sundog.storage.runs import RunFolder

if TYPE_CHECKING:
    from sundog.storage.models import ModelVersion

_LOOK_EVERY_S = 0.5
_MOST_FRESH_STARTS = 5


@dataclass(frozen=True)
class Trained:
    """How a run ended: its record, and the version it registered, if any."""

    run_id: str
    record: dict[str, Any]
    version: ModelVersion | None = None


def run_training(spec: RunSpec, folder: RunFolder) -> Trained:
    """Train to the end of the spec. Raises the SundogError that ended it otherwise."""
    observers = Observers(folder)
    with (
        notified(folder, spec.webhook),
        observers,
        driving(folder, "train", steps=spec.steps) as done,
    ):
        data = pin_data(folder.root, spec, folder.record().get("data"))
        begun = pin(folder.root, spec.init_from, folder.record().get("init_from"))
        folder.update(data=data, init_from=begun, spec=spec.model_dump(mode="json"))
        place.check_reach(folder.root)
        place.check_fit(spec.workers.low, worker_resources(spec), spec.market)
        os.environ.update(secret_environment(spec))  # the recipe is built here too
        # Fails here, before any worker starts, and not after hours when the model is registered.
        recipe = driver_recipe(folder.root, spec, data)
        observers.begin()
        outcome = _train(spec, folder, data, observers)
        if outcome["state"] == "stopped":
            done |= {"step": outcome["step"], "metrics": outcome["metrics"]}
            if budget := outcome.get("budget"):
                raise _over_budget(spec, folder, budget["usd"], f"at step {outcome['step']:,}")
            raise RunError(
                f"max_time ({spec.max_time:g} s) was over at step {outcome['step']:,}",
                f"raise it; with --run-id {folder.run_id} the run goes on from there",
            )
        if outcome["state"] != "finished":
            done |= {"step": outcome["step"], "metrics": outcome["metrics"]}
            raise failed(outcome)
        done |= {"step": outcome["step"], "steps": outcome["step"], "metrics": outcome["metrics"]}
        version = _register(spec, folder, data, recipe, outcome["metrics"])
        if version is not None:
            done["model"] = version.ref
    return Trained(folder.run_id, folder.record(), version)


def pin_data(root: Root, spec: RunSpec | BatchSpec, before: str | None = None) -> str | None:
    """`digits@latest` -> `digits@3`: the version that this run reads, now and when it resumes.

    `before` is what it read until now: a newer version of the same data set does not replace it.
    """
    from sundog.storage.datasets import open_dataset

    if spec.data is None:
        return None
    name, word = split_reference(spec.data)
    if before and word == "latest" and split_reference(before)[0] == name:
        return before
    try:
        return open_dataset(root, spec.data).ref
    except NotFound as error:
        raise NotFound(
            f"data: {spec.data}: {error.message}",
            error.fix or "write it first: ray job submit … -- python jobs/ingest.py",
        ) from None


def driver_recipe(root: Root, spec: RunSpec, data: str | None, registers: bool = False) -> Any:
    """The recipe on the driver, which registers what it makes; None where only workers need it."""
    if spec.requirements and spec.register_ is None and not registers:
        return None
    try:
        return open_recipe(root, spec, data, None)
    except RecipeError as error:
        if not spec.requirements or "requirements:" not in error.fix:
            raise
        pip = json.dumps({"pip": list(spec.requirements)})
        raise RecipeError(
            error.message,
            "the driver needs the spec's requirements too: `sundog train` brings them, or: "
            f"ray job submit --runtime-env-json '{pip}' …",
        ) from None


def worker_resources(spec: RunSpec) -> dict[str, float]:
    out = {"CPU": float(spec.resources.cpus)}
    if spec.resources.gpus:
        out["GPU"] = float(spec.resources.gpus)
    if spec.resources.memory:
        out["memory"] = float(spec.resources.memory)
    return out


def _train(
    spec: RunSpec, folder: RunFolder, data: str | None, observers: Observers
) -> dict[str, Any]:
    workers = spec.workers.clamp(place.capacity(worker_resources(spec), spec.market))
    channel = Channel(folder.run_id)
    channel.clear()
    config = {
        "spec": spec.model_dump(mode="json"), "folder": folder, "data": data,
        "directory": place.working_directory(), "environment": dict(spec.env),
        "deadline_s": WALL.now_s() + spec.max_time if spec.max_time else None,
        "losses_per_worker_hour": losses_per_worker_hour(folder, place.node_ids(spec.market)),
        "init_from": folder.record().get("init_from"),
    }  # fmt: skip
    spent = folder.record().get("usd")
    if spec.max_usd is not None and spent is not None and spent >= spec.max_usd:
        raise _over_budget(spec, folder, spent, "before it went on")
    say(folder, f"{folder.run_id} · {count(workers)} · {spec.recipe} · {data or 'own data'}")
    with Watcher(Follower(folder, channel, spec.max_usd, [observers.point]), _LOOK_EVERY_S):
        for _ in range(_MOST_FRESH_STARTS):
            outcome = _fit(spec, folder, config, workers)
            if outcome["state"] == "lost" and (fault := channel.read(FAULT)):
                return {**outcome, "state": "failed", **fault}
            # All workers lost each other at once though none died (the network, say): start anew.
            if outcome["state"] not in ("lost", "yielded"):
                return {**outcome, "budget": channel.read(STOP_ASKED)}
    raise RunError(
        f"the workers lost each other {_MOST_FRESH_STARTS} times",
        f"see sundog logs {folder.run_id}",
    )


def _over_budget(spec: RunSpec, folder: RunFolder, usd: float, when: str) -> RunError:
    return RunError(
        f"max_usd (${spec.max_usd:g}) is spent: ${usd:.2f} {when}, with a checkpoint",
        f"raise it; with --run-id {folder.run_id} the run goes on from there",
    )


def _fit(spec: RunSpec, folder: RunFolder, config: dict[str, Any], workers: int) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

    # Workers stay in the job's working directory, where the recipe is.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    runtime_env = {"pip": list(spec.requirements)} if spec.requirements else None
    with tempfile.TemporaryDirectory(prefix="sundog-train-") as scratch:
        arguments: dict[str, Any] = {
            "train_loop_config": config,
            "scaling_config": ScalingConfig(
                num_workers=workers, use_gpu=bool(spec.resources.gpus),
                resources_per_worker=worker_resources(spec), accelerator_type=spec.resources.gpu,
            ),
            "run_config": RunConfig(
                name=folder.run_id, failure_config=FailureConfig(max_failures=spec.max_failures),
                worker_runtime_env=runtime_env, **ray_storage(folder.root, folder, scratch),
            ),
        }  # fmt: skip
        private = {k: v for k, v in secret_environment(spec).items() if k in spec.secrets}
        trainer = _elastic(spec, config, arguments, private) or _stock(spec, arguments, private)
        try:
            outcome = interruptible(trainer.fit, folder.check_lease).return_value
        except TrainingFailedError as error:
            raise _lost(spec, folder, error) from None
        except RunBusy:
            if end := getattr(trainer, "end", None):  # two groups must not train the same run
                end()
            raise
    if not isinstance(outcome, dict):
        raise RunError("the workers ended without a result", f"see sundog logs {folder.run_id}")
    return outcome


def _elastic(
    spec: RunSpec, config: dict[str, Any], arguments: dict[str, Any], private: dict[str, str]
) -> Any:
    """Workers that outlive their group; None where this Ray is not the one that we know."""
    if os.environ.get("SUNDOG_STOCK_TRAIN"):
        return None
    try:
        from sundog.rayapi.train_elastic import ElasticTrainer
    except (ImportError, AttributeError):
        return None
    resizer = RunResizer.of(spec, config)
    return ElasticTrainer(
        train_worker, resizer=resizer, private=private, market=spec.market, **arguments
    )


def _stock(spec: RunSpec, arguments: dict[str, Any], private: dict[str, str]) -> Any:
    """The public way: all workers start again when one is lost. Its configuration, which lies in
    Ray's object store while the run lives, is the one way that it offers for secrets."""
    from ray.train.torch import TorchConfig, TorchTrainer

    config = arguments["train_loop_config"]
    environment = {**config["environment"], **private}
    arguments = {**arguments, "train_loop_config": {**config, "environment": environment}}
    if market := train_nodes.only(spec.market):
        arguments["scaling_config"].label_selector = {train_nodes.MARKET: market}
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    backend = "nccl" if spec.resources.gpus else "gloo"
    return TorchTrainer(
        train_worker, torch_config=TorchConfig(backend=backend, timeout_s=300), **arguments
    )


def ray_storage(root: Root, folder: RunFolder, scratch: str) -> dict[str, Any]:
    """Where Ray Train keeps its own notes. Our checkpoints never pass through it."""
    if root.is_local:
        return {"storage_path": scratch}
    filesystem, base = root.filesystem()
    return {"storage_path": f"{base}/{folder.key('ray')}", "storage_filesystem": filesystem}


def why_lost(spec: RunSpec, error: Exception) -> tuple[bool, str]:
    """Whether workers were lost (else Ray Train gave up by itself), and what to say of it."""
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    why = lines[-1].strip() if lines else type(first).__name__
    if not failures:
        return False, f"Ray Train gave up: {why}"
    return True, (
        f"workers were lost more than max_failures ({spec.max_failures}) times; the last: {why}"
    )


def _lost(spec: RunSpec, folder: RunFolder, error: Exception) -> RunError:
    lost, why = why_lost(spec, error)
    if lost:
        return RunError(
            why,
            f"see sundog logs {folder.run_id}; with --run-id {folder.run_id} it goes on from its "
            "last checkpoint",
        )
    return RunError(why, f"see sundog logs {folder.run_id}")


def _register(
    spec: RunSpec, folder: RunFolder, data: str | None, recipe: Any, metrics: dict[str, float]
) -> ModelVersion | None:
    from sundog.runs.register import announced, register

    if spec.register_ is None:
        return None
    best = best_checkpoint(folder.root, folder.run_id) if spec.checkpoint.best else None
    latest = Checkpoints(folder.root, f"runs/{folder.run_id}/checkpoints").latest
    checkpoint = best or latest()
    if best is not None:
        say(
            folder,
            f"the best is step {best.step:,}: {spec.checkpoint.best} {best.about['value']:.4g}",
        )
        metrics = dict(best.about["metrics"])
    if checkpoint is None:
        raise RunError(f"{folder.run_id} has no good checkpoint to register", "train it again")
    folder.require_lease()  # a version is for ever: the run may be another driver's by now
    registered = register(
        folder.root, spec.register_, recipe, checkpoint, metrics,
        lineage(
            data=data, run_id=folder.run_id, spec=spec, step=checkpoint.step,
            init_from=folder.record().get("init_from"),
        ),
    )  # fmt: skip
    return announced(folder, spec.register_, registered)


def already_ended(folder: RunFolder) -> str | None:
    """What to say instead of training when this run id is finished already; None: go on."""
    try:
        record = folder.record()
    except SundogError:
        return None
    if record.get("state") != "finished":
        return None
    model = f", registered as {record['model']}" if record.get("model") else ""
    return f"{folder.run_id} is finished already at step {record.get('step')}{model}"
