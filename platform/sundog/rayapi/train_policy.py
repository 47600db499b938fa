"""How many workers a run has now, and how many failures it bears, as Ray Train's controller asks.

Looks at nodes, workers and standbys; what to do about them the resizer says. Private parts of Ray Train,
as in `train_elastic.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group.worker import Worker
from ray.train.v2.api.exceptions import WorkerGroupError

from sundog.clock import WALL
from sundog.rayapi import train_nodes, train_slot
from sundog.rayapi.train_pool import Pool, Standby

_TORN_S = 0.5  # how long others may be silent after one said that it lost them
_LAST_SAVE_S = 3.0  # before a deadline at which too few would be left to go on
_LONGEST_WARMING_S = 300.0  # a busy machine may take a minute to import torch
_NODE_FOLLOWS_S = 3.0  # a node that is going down may end its workers first
_LONGEST_PAUSE_S = 60.0  # between two tries to warm a standby


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
        if self._torn(worker_group_status, workers):
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

    def _torn(self, status: Any, workers: list[Worker]) -> bool:
        """Whether a worker lost its peers while these say nothing: their node is gone, and Ray needs up to
        half a minute to call it dead."""
        statuses = status.worker_statuses
        told = any(not s.running and _state(s) == "lost" for s in statuses.values())
        silent = {workers[rank].metadata.node_id for rank, s in statuses.items() if s.running}
        if not (told and silent):
            self._torn_since_s = None
            return False
        now_s = WALL.monotonic_s()
        self._torn_since_s = self._torn_since_s or now_s
        return now_s - self._torn_since_s > _TORN_S or bool(train_nodes.gone(silent))

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
    """Train's own policy, but `max_failures` counts failures without a step further between them, and not
    those of workers that went with their node: a long run on nodes that come and go has any number of
    others."""

    nodes_of: Callable[[Iterable[int]], set[str]]  # the nodes of these ranks; set by the controller

    def __init__(self, failure_config: Any, reached: Callable[[], int]) -> None:
        super().__init__(failure_config)
        self._reached, self._furthest = reached, -1

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        step = self._reached()
        if step > self._furthest:
            self._furthest, self._worker_group_failures = step, 0
        counted = self._worker_group_failures
        decision = super().make_decision(training_failed_error)
        if isinstance(training_failed_error, WorkerGroupError):
            nodes = self.nodes_of(training_failed_error.worker_failures)
            # A worker may go a moment before its node: worth a wait where the run would end.
            patience_s = _NODE_FOLLOWS_S if decision is FailureDecision.RAISE else 0.0
            if _all_gone(nodes, patience_s):
                self._worker_group_failures = counted
                return FailureDecision.RETRY
        return decision


def _all_gone(nodes: set[str], patience_s: float) -> bool:
    if not nodes:
        return False
    until_s = WALL.monotonic_s() + patience_s
    while nodes - train_nodes.gone(nodes):
        if WALL.monotonic_s() >= until_s:
            return False
        WALL.sleep(0.2)
    return True
