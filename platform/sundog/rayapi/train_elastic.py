"""Ray Train v2 with workers that outlive their group: survivors keep their process and their state.

Stock Train kills all workers and starts again when one is lost. Here the group shrinks to the
survivors at once, leaves a node under notice with a checkpoint on the way, and a standby warms up in
the background and joins at a step boundary. Private parts of Ray Train (controller, worker group,
scaling policy), pinned to 2.60 and tested for; `train.py` falls back to the public TorchTrainer where
they are not as expected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ray
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.controller import (
    TrainController,
    TrainControllerLoopIterationResult,
)
from ray.train.v2._internal.execution.controller.state import RunningState
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from sundog.clock import WALL
from sundog.rayapi import train_nodes
from sundog.rayapi.train_lasting import Carried
from sundog.rayapi.train_policy import ElasticPolicy, InARow, Resizer
from sundog.rayapi.train_workers import ElasticWorkerGroup

_CONTROLLER_ENV = {
    # On the controller only: in the workers' environment they would cost a process start each.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}


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
        arguments["failure_policy"].nodes_of = self._nodes_of
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

    def _nodes_of(self, ranks: Iterable[int]) -> set[str]:
        group = self._worker_group
        workers = group.get_workers() if group is not None and group.has_started() else []
        wanted = set(ranks)
        return {w.metadata.node_id for rank, w in enumerate(workers) if rank in wanted}

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
