"""What `rayapi/train_*.py` need of Ray Train's private parts. Fails first when Ray moves."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import ray


def test_the_version_is_the_one_that_was_read():
    assert ray.__version__ == "2.60.0"


def test_the_controller_has_the_parts_that_are_replaced():
    from ray.train.v2._internal.execution.controller.controller import TrainController

    assert "worker_group_cls" in vars(TrainController)
    for name in (
        "_execute_resize_decision",
        "_make_and_handle_scaling_decision_for_non_running_worker_group",
        "_start_worker_group",
        "_get_run_attempt_id",
    ):
        assert callable(getattr(TrainController, name))
    parameters = inspect.signature(TrainController._start_worker_group).parameters
    # Once it was made an actor in this process, Ray adds a parameter of its own for traces.
    named = [name for name in parameters if not name.startswith("_ray_")]
    assert named == ["self", "num_workers", "resources_per_worker"]


def test_the_worker_group_has_the_parts_that_are_replaced():
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    source = inspect.getsource(WorkerGroup._start)
    assert "_start_impl(" in source
    for name in ("_init_train_context", "_assign_worker_ranks", "_clear_state", "get_workers"):
        assert callable(getattr(WorkerGroup, name))
    for field in ("_replica_groups", "_worker_rank_to_replica_group_rank", "_worker_group_state"):
        assert field in inspect.getsource(WorkerGroup.__init__)


def test_a_worker_runs_functions_beside_its_training_thread():
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    for name in ("execute", "poll_status", "run_train_fn", "get_metadata", "init_train_context"):
        assert callable(getattr(RayTrainWorker, name))


def test_the_elastic_trainer_can_be_built():
    from sundog.rayapi.train_elastic import ElasticController, ElasticTrainer
    from sundog.rayapi.train_workers import ElasticWorkerGroup

    assert ElasticWorkerGroup._start_impl is not None
    assert issubclass(ElasticTrainer, object)
    assert issubclass(ElasticController, object)


def test_draining_nodes_and_free_resources_can_be_read():
    from ray._private.state import GlobalState

    for name in (
        "get_draining_nodes",
        "available_resources_per_node",
        "get_max_resources_from_cluster_config",
    ):
        assert callable(getattr(GlobalState, name))


def test_a_group_that_cannot_start_may_be_tried_again():
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2._internal.execution.failure_handling import default

    assert WorkerGroupStartupFailedError in default.RETRYABLE_CONTROLLER_ERRORS


def test_workers_say_on_which_node_they_are_and_what_they_returned():
    from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
    from ray.train.v2._internal.execution.worker_group.worker import ActorMetadata

    assert "node_id" in ActorMetadata.__dataclass_fields__
    assert {"running", "error", "return_value"} <= set(WorkerStatus.__dataclass_fields__)


def test_failures_count_only_while_no_step_is_made_between_them():
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
    from ray.train.v2.api.exceptions import WorkerGroupError

    from sundog.rayapi.train_policy import InARow

    steps = iter([100, 250, 250, 250, 250])
    policy = InARow(FailureConfig(max_failures=2), lambda: next(steps))
    policy.nodes_of = lambda ranks: set()
    made = [policy.make_decision(WorkerGroupError("lost", {0: OSError()})) for _ in range(5)]
    retry = FailureDecision.RETRY
    assert made == [retry, retry, retry, FailureDecision.RAISE, FailureDecision.RAISE]


@pytest.mark.parametrize("goes_after", [0, 2])
def test_a_worker_lost_with_its_node_is_no_failure_of_the_run(monkeypatch, goes_after: int):
    """Also where the worker goes a moment before the node."""
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
    from ray.train.v2.api.exceptions import WorkerGroupError

    from sundog.rayapi import train_nodes
    from sundog.rayapi.train_policy import InARow

    asked = []
    policy = InARow(FailureConfig(max_failures=0), lambda: 100)
    policy.nodes_of = lambda ranks: {f"node of {rank}" for rank in ranks}
    monkeypatch.setattr(
        train_nodes,
        "gone",
        lambda nodes: asked.append(nodes) or (len(asked) > goes_after and nodes) or set(),
    )
    assert policy.make_decision(WorkerGroupError("x", {1: OSError()})) is FailureDecision.RETRY
    assert asked[0] == {"node of 1"}
    monkeypatch.setattr(train_nodes, "gone", lambda nodes: {"node of 1"})
    both = WorkerGroupError("x", {0: OSError(), 1: OSError()})
    assert policy.make_decision(both) is FailureDecision.RAISE


def test_a_worker_whose_node_is_gone_is_not_waited_for(monkeypatch):
    """Ray needs seconds to fail a call to it."""
    from types import SimpleNamespace

    from sundog.rayapi import train_nodes, train_pool

    def worker(node: str) -> Any:
        actor = SimpleNamespace(poll_status=SimpleNamespace(remote=lambda: f"poll of {node}"))
        return SimpleNamespace(actor=actor, metadata=SimpleNamespace(node_id=node))

    waits, killed = [], []

    def wait(refs, **options):
        waits.append(list(refs))
        back = [ref for ref in refs if ref == "poll of here"] if len(waits) == 2 else []
        return back, [ref for ref in refs if ref not in back]

    ended = SimpleNamespace(running=False, error=None)
    fake = SimpleNamespace(wait=wait, kill=killed.append, get=lambda ref: ended)
    monkeypatch.setattr(train_pool, "ray", fake)
    monkeypatch.setattr(train_nodes, "gone", lambda nodes: nodes & {"there"})
    here, there = worker("here"), worker("there")
    assert train_pool.gather_parked([here, there], 60.0) == [here]
    assert waits == [["poll of here", "poll of there"], ["poll of here"]]
    assert killed == [there.actor]


def test_a_group_is_torn_at_once_where_the_silent_one_s_node_is_gone(monkeypatch):
    from types import SimpleNamespace

    from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus

    from sundog.rayapi import train_nodes
    from sundog.rayapi.train_policy import ElasticPolicy

    policy = ElasticPolicy.__new__(ElasticPolicy)
    policy._torn_since_s = None
    workers: Any = [SimpleNamespace(metadata=SimpleNamespace(node_id=n)) for n in ("here", "there")]
    lost = WorkerStatus(running=False, return_value={"state": "lost"})
    silent = WorkerStatus(running=True)

    def torn(*statuses: Any) -> bool:
        return policy._torn(SimpleNamespace(worker_statuses=dict(enumerate(statuses))), workers)

    asked: list[Any] = []
    monkeypatch.setattr(train_nodes, "gone", lambda nodes: asked.append(nodes) or set())
    assert not torn(silent, silent)
    assert asked == [], "nobody lost anybody: no node is asked"
    assert not torn(lost, silent), "it may say the same in a moment"
    assert asked == [{"there"}]
    monkeypatch.setattr(train_nodes, "gone", lambda nodes: nodes)
    assert torn(lost, silent)
