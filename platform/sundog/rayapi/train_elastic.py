"""Ray Train v2 with workers that outlive their group: survivors keep their process and their state.

Stock Train kills all workers and starts again when one is lost. Here the group shrinks to the
survivors at once, leaves a node under notice with a checkpoint on the way, and a standby warms up in
the background and joins at a step boundary. Private parts of Ray Train (controller, worker group,
scaling policy), pinned to 2.60 and tested for; `train.py` falls back to the public TorchTrainer where
they are not as expected.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.controller.controller import (
    TrainController,
    TrainControllerLoopIterationResult,
)
from ray.train.v2._internal.execution.controller.state import RunningState
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
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
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sundog.clock import WALL
from sundog.rayapi import train_nodes, train_slot
from sundog.rayapi.train_lasting import Carried, new_sync_actor
from sundog.rayapi.train_pool import Pool, Standby, gather_parked

# How long a worker may take to come to a step boundary: it may be waiting for one that is silent.
_PATIENCE_S = train_slot.LONGEST_SILENCE_S + 5.0
_TORN_S = 0.5  # how long others may be silent after one said that it lost them
_LAST_SAVE_S = 3.0  # before a deadline at which too few would be left to go on
_LONGEST_WARMING_S = 300.0  # a busy machine may take a minute to import torch
_LONGEST_PAUSE_S = 60.0  # between two tries to warm a standby
_CONTROLLER_ENV = {
    # On the controller only: in the workers' environment they would cost a process start each.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}
logger = logging.getLogger(__name__)


class Resizer(Protocol):
    """How many workers the run shall have, and who is told. Picklable; changes nothing itself."""

    @property
    def low(self) -> int: ...

    @property
    def high(self) -> int: ...

    @property
    def flags(self) -> dict[str, int]:
        """What the loop takes for 'save', 'yield' and 'handover' (save, then yield)."""
        ...

    def prepare(self) -> None: ...

    def after_loss(self, survivors: int) -> int: ...

    def after_notice(self, working: int, leaving: int, warm: int) -> int | None:
        """The size to go on with now; None: too few would be left, stay while the node lives."""
        ...

    def with_warm(self, working: int, warm: int) -> int: ...

    def standing_by(self, actors: list[str]) -> None: ...

    def standby_failed(self, why: str, pause_s: float) -> None: ...

    def reached(self) -> int:
        """The furthest step that is known; -1: none yet."""
        ...

    def noticed(self, nodes: dict[str, float], leaving: int, working: int) -> None: ...

    def regrouped(self, stamps: dict[str, Any]) -> None: ...


class _NoPlacementGroup:
    """Removing a placement group kills the actors in it, so there is none."""

    placement_group = None

    def shutdown(self) -> None:
        return None


class ElasticWorkerGroup(WorkerGroup):  # type: ignore[misc]
    """A worker group made of parked survivors first, warm standbys next, new actors last."""

    pool: Pool
    stamps: dict[str, Any]
    private: dict[str, str]
    leave_flag: int
    placement: Any = None  # a placement group that somebody reserved for the workers
    market: str = "any"

    def _start_impl(self, builder: Any) -> None:
        context = self._worker_group_context
        with invoke_context_managers([c.on_worker_group_start for c in self._callbacks]):
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            # One for all groups: its process would start beside those that the run waits for.
            sync_actor = self.pool.sync_actor = self.pool.sync_actor or new_sync_actor()
            workers = self._gather(context.num_workers, context.resources_per_worker)
            self.stamps["gathered_s"] = WALL.now_s()
            self._replica_groups = [
                ReplicaGroup([w], context.resources_per_worker, self._replica_group_callbacks)
                for w in workers
            ]
            self._worker_rank_to_replica_group_rank = {i: i for i in range(len(workers))}
            token = uuid.uuid4().hex
            self.stamps["token"] = token
            try:
                begin = train_slot.begin
                ray.get([w.actor.execute.remote(begin, token, self.private) for w in workers])
                self._init_train_context(workers, sync_actor)
            except RayError as error:
                raise self._one_died(workers, error) from error
            # Not before: what a builder holds when a start fails, Train kills.
            builder.with_placement_group_handle(_NoPlacementGroup())
            self._worker_group_state = (
                builder.with_sync_actor(sync_actor).with_workers(workers).build()
            )
            builder.workers = builder.sync_actor = None
            for callback in self._callbacks:
                callback.after_worker_group_start(self)
        try:
            ray.get([w.actor.run_train_fn.remote(context.train_fn_ref) for w in workers])
        except RayError as error:
            self.park(self.leave_flag)
            raise WorkerGroupStartupFailedError(str(error)) from error
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def _gather(self, count: int, resources: dict[str, float]) -> list[Worker]:
        workers, actors = self.pool.take(count, train_nodes.leaving())
        actors += [self.new_actor(resources) for _ in range(count - len(workers) - len(actors))]
        try:
            metadata = ray.get([actor.get_metadata.remote() for actor in actors])
        except RayError as error:
            raise self._one_died(workers, error) from error
        workers += [Worker(a, m, resources) for a, m in zip(actors, metadata, strict=True)]
        return list(WorkerGroup._assign_worker_ranks(workers))

    def _one_died(self, workers: list[Worker], error: RayError) -> WorkerGroupStartupFailedError:
        """Meanwhile; the others are still good."""
        self.pool.parked += workers
        return WorkerGroupStartupFailedError(str(error))

    def new_actor(self, resources: dict[str, float]) -> Any:
        env = dict(self._train_run_context.run_config.worker_runtime_env or {})
        actor_class = ray.remote(runtime_env=env, **bundle_to_remote_args(resources))(
            RayTrainWorker
        )
        if self.placement is not None:
            where = PlacementGroupSchedulingStrategy(self.placement)
            return actor_class.options(scheduling_strategy=where).remote()
        where_else = train_nodes.placing(self.market)
        return actor_class.options(scheduling_strategy="SPREAD", **where_else).remote()

    def park(self, flag: int) -> None:
        """End the group but not its workers: each leaves its loop at a step boundary, or because
        a peer is gone. A worker that does neither in time is killed."""
        workers = self.get_workers()
        for worker in workers:
            worker.actor.execute.remote(train_slot.ask, flag)
        self.pool.parked += gather_parked(workers, _PATIENCE_S)
        self._worker_group_state.sync_actor.reset.remote()  # nobody waits for those that are gone
        self._clear_state()


class ElasticPolicy(ScalingPolicy):  # type: ignore[misc]
    """Asks the resizer; never the AutoscalingCoordinator, whose view is up to 20 s old."""

    def __init__(
        self, scaling_config: Any, resizer: Resizer, placement: Any = None, market: str = "any"
    ) -> None:
        super().__init__(scaling_config)
        self.resizer, self.placement, self.market = resizer, placement, market
        self.pool = Pool()
        self.stamps: dict[str, Any] = {}
        self.private: dict[str, str] = {}
        self.flag = resizer.flags["yield"]
        self.start_standby: Callable[[], Any] | None = None
        self._told: set[str] = set()
        self._last_save: set[str] = set()
        self._torn_since_s: float | None = None
        self._can_grow: bool | None = None
        self._failed_in_a_row, self._next_try_s = 0, float("-inf")

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
        return self._resize(count, "lost" if self.start_standby else "start")

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        self.pool.reap()
        workers = worker_group_state.workers
        if self._torn(worker_group_status):
            return self._resize(len(workers), "lost")  # counted again when the others are parked
        leaving = train_nodes.leaving()
        going = [w for w in workers if w.metadata.node_id in leaving]
        if going:
            decision = self._under_notice(workers, going, leaving)
            if decision is not None:
                return decision
        self._warm_up(len(workers) - len(going), leaving)
        warm = len(self.pool.warm(leaving))
        self.resizer.standing_by([s.actor._actor_id.hex() for s in self.pool.standby])
        count = self.resizer.with_warm(len(workers), warm) if warm and not going else 0
        if count <= len(workers) or self.pool.lost_standbys():  # else all would stop for nobody
            return NoopDecision()
        self._failed_in_a_row = 0
        return self._resize(count, "grow")

    def _torn(self, status: Any) -> bool:
        """Whether a worker lost its peers while these say nothing: their node is gone, and Ray
        needs up to half a minute to call it dead."""
        statuses = status.worker_statuses.values()
        told = any(not s.running and _state(s) == "lost" for s in statuses)
        silent = any(s.running for s in statuses)
        if not (told and silent):
            self._torn_since_s = None
            return False
        now_s = WALL.monotonic_s()
        self._torn_since_s = self._torn_since_s or now_s
        return now_s - self._torn_since_s > _TORN_S

    def _under_notice(
        self, workers: list[Worker], going: list[Worker], leaving: dict[str, float]
    ) -> ScalingDecision | None:
        nodes = {w.metadata.node_id: leaving[w.metadata.node_id] for w in going}
        new = nodes.keys() - self._told
        self._told |= new
        if new:
            self.stamps = {"cause": "notice", "seen_s": WALL.now_s()}
            self.resizer.noticed(nodes, len(going), len(workers))
        warm = len(self.pool.warm(leaving))
        count = self.resizer.after_notice(len(workers), len(going), warm)
        if count is not None:
            self.flag = self.resizer.flags["handover"]
            return self._resize(count, "notice")
        # Too few would be left. The node computes until it is gone; what it made is saved.
        late = {n for n, at_s in nodes.items() if 0 < at_s < WALL.now_s() + _LAST_SAVE_S}
        if new or late - self._last_save:
            self._last_save |= late
            for worker in workers:
                worker.actor.execute.remote(train_slot.ask, self.resizer.flags["save"])
        return None

    def _warm_up(self, staying: int, leaving: dict[str, float]) -> None:
        """Start what is missing, in the background; a place under notice is a place to fill."""
        self._note_failures()
        missing = self.resizer.high - staying - len(self.pool.standby)
        if missing <= 0 or self.start_standby is None or WALL.monotonic_s() < self._next_try_s:
            return
        for _ in range(min(missing, self._places(leaving))):
            actor = self.start_standby()
            ref = actor.execute.remote(train_slot.warm, self.resizer.prepare, self.private)
            self.pool.standby.append(Standby(actor, ref))

    def _note_failures(self) -> None:
        """A standby that could not get ready is said, and tried again less and less often."""
        if self._can_grow is False:  # else it may wait for a node as long as that takes
            self.pool.give_up(_LONGEST_WARMING_S)
        failures, self.pool.failures = self.pool.failures, []
        for why in failures:
            pause_s = min(_LONGEST_PAUSE_S, 2.0**self._failed_in_a_row)
            self._failed_in_a_row += 1
            self._next_try_s = WALL.monotonic_s() + pause_s
            self.resizer.standby_failed(why, pause_s)

    def _places(self, leaving: dict[str, float]) -> int:
        if self._can_grow is None:
            # A place that was reserved comes back by itself when a node has room for it.
            self._can_grow = self.placement is not None or train_nodes.can_grow()
        # Where nodes can come, an actor that waits for room is what asks for one.
        need = self.scaling_config._resources_per_worker_not_none
        if self._can_grow:
            return self.resizer.high
        return train_nodes.room(need, leaving | train_nodes.elsewhere(self.market))

    def _resize(self, count: int, cause: str = "lost") -> ResizeDecision:
        if self.stamps.get("cause") != cause:
            self.stamps = {"cause": cause, "seen_s": WALL.now_s()}
        resources = self.scaling_config._resources_per_worker_not_none
        return ResizeDecision(num_workers=count, resources_per_worker=resources)

    def _fits(self) -> int:
        if self.placement is not None:
            return self.resizer.high  # reserved
        need = self.scaling_config._resources_per_worker_not_none
        without = train_nodes.leaving() | train_nodes.elsewhere(self.market)
        free = train_nodes.room(need, without)
        return max(self.resizer.low, min(self.resizer.high, free))

    def settled(self, asked_for: int) -> int:
        """Workers are parked. How many go on: fewer than asked for when not all came back, so that
        nobody waits for a process to start."""
        leaving = train_nodes.leaving()
        self.stamps["parked_s"] = WALL.now_s()
        here = [w for w in self.pool.survivors() if w.metadata.node_id not in leaving]
        self.pool.lost_standbys()
        ready = len(here) + len(self.pool.warm(leaving))
        if ready < asked_for and self.pool.parked:
            return self.resizer.after_loss(max(ready, len(here)) or len(self.pool.parked))
        return asked_for


def _state(status: Any) -> str:
    value = status.return_value
    return str(value.get("state")) if isinstance(value, dict) else ""


class InARow(DefaultFailurePolicy):  # type: ignore[misc]
    """Train's own policy, but `max_failures` counts failures without a step further between them: a long
    run on nodes that come and go has any number of others."""

    def __init__(self, failure_config: Any, reached: Callable[[], int]) -> None:
        super().__init__(failure_config)
        self._reached, self._furthest = reached, -1

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        step = self._reached()
        if step > self._furthest:
            self._furthest, self._worker_group_failures = step, 0
        return super().make_decision(training_failed_error)


class ElasticController(TrainController):  # type: ignore[misc]
    """Train's controller, but a resize parks workers instead of ending them."""

    _worker_group: Any

    def __init__(self, **arguments: Any) -> None:
        policy: ElasticPolicy = arguments["scaling_policy"]
        self._policy = policy
        # The controller builds its groups from this class: the pool and the stamps ride on it.
        self.worker_group_cls: Any = type(
            "BoundGroup",
            (ElasticWorkerGroup,),
            {"pool": policy.pool, "placement": policy.placement, "market": policy.market},
        )
        super().__init__(**arguments)
        self._train_fn_ref: Any = Carried(self._train_fn_ref.get())

    def _make_and_handle_scaling_decision_for_non_running_worker_group(self, state: Any) -> Any:
        self._park()  # so that the decision counts who is left
        return super()._make_and_handle_scaling_decision_for_non_running_worker_group(state)

    def _execute_resize_decision(self, decision: Any) -> TrainControllerLoopIterationResult:
        policy = self._policy
        self._park()
        count = policy.settled(decision.num_workers)
        self.worker_group_cls.stamps = policy.stamps
        self.worker_group_cls.private = policy.private
        self.worker_group_cls.leave_flag = policy.resizer.flags["yield"]
        self._start_worker_group(count, decision.resources_per_worker)
        group: Any = self._worker_group
        policy.start_standby = lambda: group.new_actor(decision.resources_per_worker)
        policy.pool.release(train_nodes.leaving())  # nobody waits for those that go
        policy.resizer.regrouped({**policy.stamps, "workers": count, "started_s": WALL.now_s()})
        policy.stamps, policy.flag = {}, policy.resizer.flags["yield"]
        return TrainControllerLoopIterationResult(
            run_attempt_id=self._get_run_attempt_id(),
            previous_state=self._state,
            next_state=RunningState(),
        )

    async def keep(self, private: dict[str, str]) -> None:
        """Environment variables for every worker. Not an argument of the constructor: Ray stores
        those in the GCS."""
        self._policy.private = private

    def _park(self) -> None:
        if self._worker_group is not None and self._worker_group.has_started():
            self._worker_group.park(self._policy.flag)
        self._worker_group = None


class ElasticTrainer(DataParallelTrainer):  # type: ignore[misc]
    """A DataParallelTrainer whose workers survive resizes. The training function forms its own
    process group for the token in `train_slot.SLOT`, and returns when it yields or loses a peer.

    `placement`: the placement group whose bundles are the workers' places; None: wherever is room on
    nodes of the `market`.
    """

    def __init__(
        self, train_loop_per_worker: Any, *, resizer: Resizer, private: dict[str, str],
        placement: Any = None, market: str = "any", **arguments: Any,
    ) -> None:  # fmt: skip
        super().__init__(train_loop_per_worker, **arguments)
        self._resizer, self._private, self._placement = resizer, private, placement
        self._market = market
        self._controller: Any = None

    def end(self) -> None:
        """Kill the controller, and with it the workers, whatever they do. From any thread."""
        if self._controller is not None:
            ray.kill(self._controller)

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["scaling_policy"] = ElasticPolicy(
            self.scaling_config, self._resizer, self._placement, self._market
        )
        config = self.run_config.failure_config
        arguments["failure_policy"] = InARow(config, self._resizer.reached)
        node = ray.get_runtime_context().get_node_id()
        controller = (
            ray.remote(ElasticController)
            .options(
                num_cpus=0,
                # Not in the placement group of whoever calls, whose places are the workers'.
                scheduling_strategy="DEFAULT",
                label_selector={ray._raylet.RAY_NODE_ID_KEY: node},
                runtime_env={"env_vars": {**_CONTROLLER_ENV, **_own("RAY_TRAIN_")}},
            )
            .remote(**arguments)
        )
        self._controller = controller
        ray.get(controller.keep.remote(self._private))
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


def _own(prefix: str) -> dict[str, str]:
    """What the user set himself goes before our settings."""
    return {k: v for k, v in os.environ.items() if k.startswith(prefix)}
