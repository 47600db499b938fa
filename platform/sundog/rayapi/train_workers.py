"""A Ray Train worker group whose workers are taken from those that there are, and parked when it ends.

Private parts of Ray Train, as in `train_elastic.py`.
"""

from __future__ import annotations

import uuid
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.worker_group.execution_group import ReplicaGroup
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker, Worker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2._internal.util import bundle_to_remote_args, invoke_context_managers
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sundog.clock import WALL
from sundog.rayapi import train_nodes, train_slot
from sundog.rayapi.train_lasting import new_sync_actor
from sundog.rayapi.train_pool import Pool, gather_parked

# How long a worker may take to come to a step boundary: it may be waiting for one that is silent.
_PATIENCE_S = train_slot.LONGEST_SILENCE_S + 5.0


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
