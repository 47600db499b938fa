"""A run's range of sizes, as Ray Train's controller asks for it, and what it hears of changes.

Carries snapshots to `resize.decide` and stamps to the run's folder; decides nothing itself.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sundog import telemetry
from sundog.clock import WALL
from sundog.errors import SundogError
from sundog.rayapi.train_channel import Channel
from sundog.runs.news import eta_s
from sundog.runs.resize import Resize, Snapshot, decide
from sundog.runs.worker import prepare
from sundog.spec.run import RunSpec
from sundog.storage.runs import RunFolder

STANDBYS = "standbys"
"""The topic under which a run's standbys are posted, and with an actor's id where that one is."""

_GROW_PAUSE_S = 1.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResizer:
    """The run's range and `resize.decide`, as the controller asks for them."""

    low: int
    high: int
    flags: dict[str, int]
    config: dict[str, Any]
    _told: dict[str, Any] = field(default_factory=dict, compare=False)  # and heard, before

    @classmethod
    def of(cls, spec: RunSpec, config: dict[str, Any]) -> RunResizer:
        from sundog.runs.loop import HANDOVER, SAVE, YIELD

        flags = {"save": SAVE, "yield": YIELD, "handover": HANDOVER}
        return cls(spec.workers.low, spec.workers.high or spec.workers.low, flags, config)

    def after_loss(self, survivors: int) -> int:
        """The survivors go on at once when they may; else as many more start as must."""
        return self._decide(survivors, 1, 0).workers

    def after_notice(self, working: int, leaving: int, warm: int) -> int | None:
        """The size to go on with, without those under notice; None: too few, stay meanwhile."""
        found = self._decide(working, 0, warm, leaving)
        return None if found.what == "wait" else found.workers

    def with_warm(self, working: int, warm: int) -> int:
        """Whether those that are ready join now: not when others are nearly so, nor near the end."""
        warming, next_warm_s = self._warming()
        return self._decide(working, 0, warm, 0, warming, next_warm_s, self._left_s()).workers

    def _left_s(self) -> float:
        """How long the run goes on, as far as its own news tell."""
        progress = None
        with suppress(RuntimeError):
            progress = self._channel.read("progress")
        left_s = eta_s(progress) if progress else None
        return math.inf if left_s is None else left_s

    def _warming(self) -> tuple[int, float]:
        """How many standbys are on their way, and seconds until the next is ready, from what the last
        one took. Of one that takes longer than that nobody knows."""
        found = []
        with suppress(RuntimeError):
            found = [self._channel.read(f"{STANDBYS}/{a}") for a in self._told.get(STANDBYS, [])]
        for one in found:
            if one and one["ready"]:
                self._told["took_s"] = one["took_s"]
        began_s = [one["began_s"] for one in found if one and not one["ready"]]
        rest_s = [self._told.get("took_s", 0.0) - (WALL.now_s() - at_s) for at_s in began_s]
        return len(began_s), min((s for s in rest_s if s > 0), default=math.inf)

    def prepare(self) -> None:
        """In a standby's process: get ready, and say where that is, since its node has its price."""
        import ray

        context = ray.get_runtime_context()
        topic = f"{STANDBYS}/{context.get_actor_id()}"
        began_s = WALL.now_s()
        where = {"node_id": context.get_node_id(), "began_s": began_s}
        with suppress(RuntimeError):
            self._channel.post(topic, {**where, "ready": False})
        prepare(self.config)
        with suppress(RuntimeError):
            took_s = WALL.now_s() - began_s
            self._channel.post(topic, {**where, "ready": True, "took_s": took_s})

    def standing_by(self, actors: list[str]) -> None:
        """The standbys that there are now, ready or not, by their actors' ids."""
        if actors != self._told.get(STANDBYS):
            with suppress(RuntimeError):
                self._channel.post(STANDBYS, {"actors": actors})
                self._told[STANDBYS] = actors

    def standby_failed(self, why: str, pause_s: float) -> None:
        """A worker that was to join could not get ready; the run goes on without it meanwhile."""
        folder: RunFolder = self.config["folder"]
        line = f"a standby worker failed: {why}; the next try in {pause_s:g} s"
        logger.warning("%s: %s", folder.run_id, line)
        with suppress(SundogError):
            folder.append_log("standby", line + "\n")
            folder.flush()

    def reached(self) -> int:
        """The furthest step that the first worker told of; -1: none yet."""
        with suppress(RuntimeError):
            return int((self._channel.read("progress") or {}).get("step", -1))
        return -1

    def noticed(self, nodes: dict[str, float], leaving: int, working: int) -> None:
        """Some nodes of the run are about to go."""
        folder: RunFolder = self.config["folder"]
        left = {node: round(at_s - WALL.now_s(), 1) for node, at_s in nodes.items() if at_s}
        with suppress(SundogError):  # a root that is away is no reason to miss the deadline
            folder.event(telemetry.RUN_NOTICE, nodes=left, leaving=leaving, working=working)
            folder.flush()

    def regrouped(self, stamps: dict[str, Any]) -> None:
        """A new group is about to step; when each stage of making it was over."""
        with suppress(RuntimeError, SundogError):
            self._channel.post("regroup", stamps)

    @property
    def _channel(self) -> Channel:
        return Channel(self.config["folder"].run_id)

    def _decide(
        self, working: int, lost: int, warm: int, leaving: int = 0, warming: int = 0,
        next_warm_s: float = math.inf, left_s: float = math.inf,
    ) -> Resize:  # fmt: skip
        return decide(
            Snapshot(
                working, lost, leaving, warm, warming, self.low, self.high, _GROW_PAUSE_S,
                left_s, next_warm_s,
            )
        )  # fmt: skip
