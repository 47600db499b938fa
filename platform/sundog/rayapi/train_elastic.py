"""Ray Train v2 with workers that outlive their group: survivors keep their process and their state.

Stock Train kills all workers and starts again when one is lost. Here the group shrinks to the
survivors at once, a standby warms up in the background and joins at a step boundary. Private parts
of Ray Train (controller, worker group, scaling policy), pinned to 2.60 and tested for; `train.py`
falls back to the public TorchTrainer where they are not as expected.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.controller import (
    TrainController,
    TrainControllerLoopIterationResult,
)
from ray.train.v2._internal.execution.controller.state import RunningState
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group.execution_group import ReplicaGroup
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker, Worker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2._internal.util import bundle_to_remote_args, invoke_context_managers
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from sundog.clock import WALL
from sundog.rayapi import train_slot

_LEAVE_S = 5.0  # how long a worker may take to come to a step boundary or to notice a lost peer
_POLL_S = 0.02
_CONTROLLER_ENV = {
    # On the controller only: in the workers' environment they would cost a process start each.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}
logger = logging.getLogger(__name__)


class Resizer(Protocol):
    """How many workers the run shall have. Picklable; decides, changes nothing."""

    @property
    def low(self) -> int: ...

    @property
    def high(self) -> int: ...

    @property
    def yield_flag(self) -> int: ...

    def prepare(self) -> None: ...

    def after_loss(self, survivors: int) -> int: ...

    def with_warm(self, working: int, warm: int) -> int: ...


@dataclass
class Pool:
    """Worker actors that are alive and in no group, in the controller's process."""

    parked: list[Worker] = field(default_factory=list)
    standby: list[tuple[Any, Any]] = field(default_factory=list)  # actor, ref of its warming

    def survivors(self) -> list[Worker]:
        """The parked workers that still answer."""
        refs = {w.actor.get_metadata.remote(): w for w in self.parked}
        done, _ = (
            ray.wait(list(refs), num_returns=len(refs), timeout=_LEAVE_S) if refs else ([], [])
        )
        alive = []
        for ref in done:
            try:
                ray.get(ref)
                alive.append(refs[ref])
            except RayError:
                continue
        self.parked = [w for w in self.parked if w in alive]
        return self.parked

    def warm(self) -> list[Any]:
        """Standby actors that are ready; dead ones are forgotten."""
        ready, _ = ray.wait([r for _, r in self.standby], num_returns=len(self.standby), timeout=0) \
            if self.standby else ([], [])  # fmt: skip
        out, keep = [], []
        for actor, ref in self.standby:
            if ref not in ready:
                keep.append((actor, ref))
                continue
            try:
                ray.get(ref)
                out.append(actor)
                keep.append((actor, ref))
            except RayError:
                continue
        self.standby = keep
        return out

    def close(self) -> None:
        for actor in [*(w.actor for w in self.parked), *(a for a, _ in self.standby)]:
            ray.kill(actor)
        self.parked, self.standby = [], []


class _NoPlacementGroup:
    """Removing a placement group kills the actors in it, so there is none."""

    placement_group = None

    def shutdown(self) -> None:
        return None


class ElasticWorkerGroup(WorkerGroup):  # type: ignore[misc]
    """A worker group made of parked survivors first, warm standbys next, new actors last."""

    pool: Pool
    sync_actor: Any = None

    def _start_impl(self, builder: Any) -> None:
        context = self._worker_group_context
        with invoke_context_managers([c.on_worker_group_start for c in self._callbacks]):
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            builder.with_placement_group_handle(_NoPlacementGroup())
            sync_actor = _sync_actor()
            builder.with_sync_actor(sync_actor)
            workers = self._gather(context.num_workers, context.resources_per_worker)
            builder.with_workers(workers)
            self._replica_groups = [
                ReplicaGroup([w], context.resources_per_worker, self._replica_group_callbacks)
                for w in workers
            ]
            self._worker_rank_to_replica_group_rank = {i: i for i in range(len(workers))}
            token = uuid.uuid4().hex
            ray.get([w.actor.execute.remote(train_slot.begin, token) for w in workers])
            self._init_train_context(workers, sync_actor)
            self._worker_group_state = builder.build()
            for callback in self._callbacks:
                callback.after_worker_group_start(self)
        ray.get([w.actor.run_train_fn.remote(context.train_fn_ref) for w in workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def _gather(self, count: int, resources: dict[str, float]) -> list[Worker]:
        workers = self.pool.parked[:count]
        self.pool.parked = self.pool.parked[count:]
        actors = self.pool.warm()[: count - len(workers)]
        self.pool.standby = [(a, r) for a, r in self.pool.standby if a not in actors]
        actors += [self.new_actor(resources) for _ in range(count - len(workers) - len(actors))]
        metadata = ray.get([actor.get_metadata.remote() for actor in actors])
        workers += [Worker(a, m, resources) for a, m in zip(actors, metadata, strict=True)]
        return list(WorkerGroup._assign_worker_ranks(workers))

    def new_actor(self, resources: dict[str, float]) -> Any:
        env = dict(self._train_run_context.run_config.worker_runtime_env or {})
        actor_class = ray.remote(runtime_env=env, **bundle_to_remote_args(resources))(
            RayTrainWorker
        )
        return actor_class.options(scheduling_strategy="SPREAD").remote()

    def park(self, flag: int) -> None:
        """End the group but not its workers: each leaves its loop at a step boundary, or because
        a peer is gone. A worker that does neither in time is killed."""
        workers = self.get_workers()
        for worker in workers:
            worker.actor.execute.remote(train_slot.ask, flag)
        deadline_s = WALL.monotonic_s() + _LEAVE_S
        waiting = {worker.actor.poll_status.remote(): worker for worker in workers}
        while waiting and WALL.monotonic_s() < deadline_s:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=0.2)
            for ref in done:
                worker = waiting.pop(ref)
                try:
                    status = ray.get(ref)
                except RayError:
                    continue  # it is the lost one
                if not status.running and status.error is None:
                    self.pool.parked.append(worker)
                elif status.running:
                    WALL.sleep(_POLL_S)
                    waiting[worker.actor.poll_status.remote()] = worker
                else:
                    ray.kill(worker.actor)
        for worker in waiting.values():
            logger.warning("a worker did not leave its group in %.0f s: killed", _LEAVE_S)
            ray.kill(worker.actor)
        ray.kill(self._worker_group_state.sync_actor)
        self._clear_state()


def _sync_actor() -> Any:
    from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor

    return SynchronizationActor.options(num_cpus=0).remote(timeout_s=None, warn_interval_s=60.0)


class ElasticPolicy(ScalingPolicy):  # type: ignore[misc]
    """Asks the resizer; never the AutoscalingCoordinator, whose view is up to 20 s old."""

    def __init__(self, scaling_config: Any, resizer: Resizer) -> None:
        super().__init__(scaling_config)
        self.resizer = resizer
        self.pool = Pool()
        self.start_standby: Callable[[], Any] | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        return None

    async def before_controller_shutdown(self) -> None:
        self.pool.close()

    def before_controller_abort(self) -> None:
        self.pool.close()

    def _get_num_workers_for_resource_request(self) -> int:
        return self.resizer.high

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        survivors = len(self.pool.survivors())
        count = self.resizer.after_loss(survivors) if survivors else self._fits()
        return self._resize(count)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        working = len(worker_group_state.workers)
        if working >= self.resizer.high or self.start_standby is None:
            return NoopDecision()
        missing = self.resizer.high - working - len(self.pool.standby)
        for _ in range(max(0, min(missing, self._free()))):
            actor = self.start_standby()
            ref = actor.execute.remote(train_slot.warm, self.resizer.prepare)
            self.pool.standby.append((actor, ref))
        warm = len(self.pool.warm())
        count = self.resizer.with_warm(working, warm)
        return self._resize(count) if count > working else NoopDecision()

    def _resize(self, count: int) -> ResizeDecision:
        resources = self.scaling_config._resources_per_worker_not_none
        return ResizeDecision(num_workers=count, resources_per_worker=resources)

    def _fits(self) -> int:
        return max(self.resizer.low, min(self.resizer.high, self._free()))

    def _free(self) -> int:
        """Workers for which resources are free now, on nodes that are not about to go."""
        have = ray.available_resources()
        need = self.scaling_config._resources_per_worker_not_none
        return int(min((have.get(k, 0) // v for k, v in need.items() if v > 0), default=1))


class ElasticController(TrainController):  # type: ignore[misc]
    """Train's controller, but a resize parks workers instead of ending them."""

    _worker_group: Any

    def __init__(self, **arguments: Any) -> None:
        policy: ElasticPolicy = arguments["scaling_policy"]
        self._policy = policy
        self.worker_group_cls = type("BoundGroup", (ElasticWorkerGroup,), {"pool": policy.pool})
        super().__init__(**arguments)

    def _make_and_handle_scaling_decision_for_non_running_worker_group(self, state: Any) -> Any:
        self._park()  # so that the decision counts who is left
        return super()._make_and_handle_scaling_decision_for_non_running_worker_group(state)

    def _execute_resize_decision(self, decision: Any) -> TrainControllerLoopIterationResult:
        self._park()
        self._policy.pool.survivors()
        self._start_worker_group(decision.num_workers, decision.resources_per_worker)
        group: Any = self._worker_group
        self._policy.start_standby = lambda: group.new_actor(decision.resources_per_worker)
        return TrainControllerLoopIterationResult(
            run_attempt_id=self._get_run_attempt_id(),
            previous_state=self._state,
            next_state=RunningState(),
        )

    def _park(self) -> None:
        if self._worker_group is not None and self._worker_group.has_started():
            self._worker_group.park(self._policy.resizer.yield_flag)
        self._worker_group = None


class ElasticTrainer(DataParallelTrainer):  # type: ignore[misc]
    """A DataParallelTrainer whose workers survive resizes. The training function forms its own
    process group for the token in `train_slot.SLOT`, and returns when it yields or loses a peer."""

    def __init__(self, train_loop_per_worker: Any, *, resizer: Resizer, **arguments: Any) -> None:
        super().__init__(train_loop_per_worker, **arguments)
        self._resizer = resizer

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["scaling_policy"] = ElasticPolicy(self.scaling_config, self._resizer)
        node = ray.get_runtime_context().get_node_id()
        controller = (
            ray.remote(ElasticController)
            .options(
                num_cpus=0,
                label_selector={ray._raylet.RAY_NODE_ID_KEY: node},
                runtime_env={"env_vars": {**_CONTROLLER_ENV, **_own("RAY_TRAIN_")}},
            )
            .remote(**arguments)
        )
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


def _own(prefix: str) -> dict[str, str]:
    """What the user set himself goes before our settings."""
    return {k: v for k, v in os.environ.items() if k.startswith(prefix)}
