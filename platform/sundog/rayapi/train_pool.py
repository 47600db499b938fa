"""Training worker actors that are alive and in no group: survivors, standbys, and those about to go.

Kept in the controller's process. Decides nothing about how many there should be.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.train.v2._internal.execution.worker_group.worker import Worker

from sundog.clock import WALL
from sundog.rayapi import train_nodes, train_slot

_MUTE_S = 3.0  # a process that answers nothing for so long is taken for lost, with its node
_LAST_WORD_S = 60.0  # how long a worker may go on writing where nobody named a deadline


@dataclass
class Standby:
    """An actor and the reference of its warming, which gives the node that it is on."""

    actor: Any
    warmed: Any
    node: str = ""
    since_s: float = field(default_factory=WALL.monotonic_s)


@dataclass
class Pool:
    parked: list[Worker] = field(default_factory=list)
    standby: list[Standby] = field(default_factory=list)
    leaving: list[tuple[Any, Any, float]] = field(default_factory=list)  # actor, ref, deadline_s
    failures: list[str] = field(default_factory=list)  # why standbys were given up, until read
    sync_actor: Any = None

    def survivors(self) -> list[Worker]:
        """The parked workers that still answer."""
        alive = _answering([w.actor for w in self.parked])
        self.parked = [w for w in self.parked if w.actor in alive]
        return self.parked

    def lost_standbys(self) -> int:
        """How many warm standbys answer no more, and are forgotten."""
        warm = [s for s in self.standby if s.node]
        alive = _answering([s.actor for s in warm])
        lost = [s for s in warm if s.actor not in alive]
        for one in lost:
            self._drop(one, "it was warm and answers no more")
        return len(lost)

    def give_up(self, after_s: float) -> None:
        """Drop the standbys that are not warm after so long."""
        now_s = WALL.monotonic_s()
        for one in [s for s in self.standby if not s.node and now_s - s.since_s > after_s]:
            self._drop(one, f"it was not ready after {after_s:.0f} s")

    def _drop(self, one: Standby, why: str) -> None:
        self.standby = [s for s in self.standby if s is not one]
        self.failures.append(why)
        ray.kill(one.actor)

    def warm(self, without: Container[str] = ()) -> list[Any]:
        """Standby actors that are ready, on nodes not in `without`; those that failed are dropped."""
        refs = [s.warmed for s in self.standby]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
        for one in list(self.standby):
            if one.warmed in ready and not one.node:
                try:
                    one.node = ray.get(one.warmed)
                except RayError as error:
                    self._drop(one, _reason(error))
            elif one.node and one.node in without:
                self.standby.remove(one)
                ray.kill(one.actor)
        return [s.actor for s in self.standby if s.node]

    def take(self, count: int, without: Container[str] = ()) -> tuple[list[Worker], list[Any]]:
        """Up to `count` from here: parked workers first, those whose node stays before others,
        then warm standbys."""
        self.parked.sort(key=lambda w: w.metadata.node_id in without)
        workers, self.parked = self.parked[:count], self.parked[count:]
        actors = self.warm(without)[: count - len(workers)]
        self.standby = [s for s in self.standby if s.actor not in actors]
        return workers, actors

    def release(self, nodes: dict[str, float]) -> None:
        """Parked workers on these nodes finish what they are writing, then end."""
        going = [w for w in self.parked if w.metadata.node_id in nodes]
        self.parked = [w for w in self.parked if w not in going]
        for worker in going:
            deadline_s = nodes[worker.metadata.node_id] or WALL.now_s() + _LAST_WORD_S
            ref = worker.actor.execute.remote(train_slot.settle)
            self.leaving.append((worker.actor, ref, deadline_s))
        self.reap()

    def reap(self) -> None:
        """End those that have written everything, so that Ray lets their node go."""
        keep = []
        for actor, ref, deadline_s in self.leaving:
            done, _ = ray.wait([ref], timeout=0)
            if done or WALL.now_s() > deadline_s:
                ray.kill(actor)
            else:
                keep.append((actor, ref, deadline_s))
        self.leaving = keep

    def close(self) -> None:
        last = [ref for _, ref, _ in self.leaving]
        if last:
            ray.wait(last, num_returns=len(last), timeout=_MUTE_S)
        actors = [*(w.actor for w in self.parked), *(s.actor for s in self.standby)]
        actors += [
            *(a for a, _, _ in self.leaving),
            *([self.sync_actor] if self.sync_actor else []),
        ]
        for actor in actors:
            ray.kill(actor)
        self.sync_actor = None
        self.parked, self.standby, self.leaving = [], [], []


def gather_parked(workers: list[Worker], patience_s: float) -> list[Worker]:
    """The workers whose training function has returned in time; every other one is killed.

    One that answers gets `patience_s` to come to the end of its step; one that does not answer at all, or
    whose node is gone, is lost, though Ray may need longer to say so.
    """
    parked: list[Worker] = []
    began_s = WALL.monotonic_s()
    asked = {w.actor.poll_status.remote(): (w, began_s) for w in workers}
    while asked:
        done, _ = ray.wait(list(asked), num_returns=1, timeout=0.1)
        for ref in done:
            worker, _when = asked.pop(ref)
            try:
                status = ray.get(ref)
            except RayError:
                continue  # it is the lost one
            if status.running and WALL.monotonic_s() - began_s < patience_s:
                WALL.sleep(0.01)
                asked[worker.actor.poll_status.remote()] = (worker, WALL.monotonic_s())
            elif not status.running and status.error is None:
                parked.append(worker)
            else:
                ray.kill(worker.actor)
        nodes = {worker.metadata.node_id for worker, _ in asked.values()}
        gone = train_nodes.gone(nodes) if nodes and not done else set()
        now_s = WALL.monotonic_s()
        for ref, (worker, when_s) in list(asked.items()):
            if now_s - when_s > _MUTE_S or worker.metadata.node_id in gone:
                del asked[ref]
                ray.kill(worker.actor)
    return parked


def _answering(actors: list[Any]) -> list[Any]:
    """Those of these training workers that answer in time."""
    refs = {actor.get_metadata.remote(): actor for actor in actors}
    done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=_MUTE_S) if refs else ([], [])
    return [refs[ref] for ref in done if _answers(ref)]


def _answers(ref: Any) -> bool:
    try:
        ray.get(ref)
    except RayError:
        return False
    return True


def _reason(error: RayError) -> str:
    """One line of why an actor's call failed; of an exception inside it, that exception."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {_line(str(error.cause))}"
    return f"its process or its node was lost ({_line(str(error))})"


def _line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no word why"
