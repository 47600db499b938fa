"""Gives nodes back that do better elsewhere: asks the decider, drains through Ray.

On-demand stand-ins when spot is there again, and the idle nodes of a gang whose zone has no more.
Never ends a node itself: a drained node goes when its work has moved or ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from sundog.capacity.decide import gang_moves, hand_backs
from sundog.capacity.launching import Buyer
from sundog.capacity.state import Node, PoolPlan, View
from sundog.capacity.tags import DRAINING_TAG
from sundog.clock import Clock
from sundog.errors import CapacityError, ClusterError
from sundog.rayapi.drain import Drains, RayNode

logger = logging.getLogger(__name__)

EVERY_S = 30.0
# Time for a run to checkpoint; Ray kills nothing when it is over.
MOVE_S = 600.0


class StandIns:
    """`connect` returns Ray's side, or None where there is none (a laptop that runs `ray up`)."""

    def __init__(
        self, buyer: Buyer, plans: Mapping[str, PoolPlan], clock: Clock,
        connect: Callable[[], Drains | None],
    ) -> None:  # fmt: skip
        self._buyer, self._plans, self._clock, self._connect = buyer, plans, clock, connect
        self._next_s = 0.0

    def step(self) -> list[str]:
        """Drain what the decider says, at most every 30 s; the ids of the machines drained."""
        now_s = self._clock.now_s()
        if now_s < self._next_s:
            return []
        self._next_s = now_s + EVERY_S
        view = self._buyer.view()
        if not any(_may_move(plan, view) for plan in self._plans.values()):
            return []  # nothing to ask Ray about
        try:
            return self._drain(view, now_s)
        except (ClusterError, CapacityError) as error:
            logger.warning("no stand-in handed back: %s", error)
            return []

    def _drain(self, view: View, now_s: float) -> list[str]:
        ray = self._connect()
        if ray is None:
            return []
        known = {n.instance_id: n for n in ray.nodes()}
        view = replace(view, nodes=tuple(_seen(n, known.get(n.id)) for n in view.nodes))
        done = []
        for plan in self._plans.values():
            leaving = [
                (x.node_id, x.why, "handed back", "stand-in") for x in hand_backs(plan, view)
            ]
            leaving += [(x.node_id, x.why, "gang moved", "gang") for x in gang_moves(plan, view)]
            for id_, why, what, tag in leaving:
                if id_ not in known:
                    continue  # it is still starting; a drain would find no node
                ray.drain(known[id_].node_id, now_s + MOVE_S, why)
                # Tagged after Ray agreed, so that a drain that failed is tried again.
                self._buyer.retag(id_, {DRAINING_TAG: tag})
                self._buyer.note(plan.name, what, f"{id_}: {why}")
                done.append(id_)
        return done


def _may_move(plan: PoolPlan, view: View) -> bool:
    """Whether the decider could move anything here, if it knew which nodes are idle."""
    gang = plan.one_zone and plan.name in view.wanted and bool(view.of(plan.name))
    return gang or bool(hand_backs(plan, view))


def _seen(node: Node, ray: RayNode | None) -> Node:
    if ray is None:
        return node
    return replace(node, busy=ray.status != "IDLE", idle_s=ray.idle_s)


def ray_of_this_process() -> Drains | None:
    """Ray's side inside the head's monitor; elsewhere nobody has set a GCS client."""
    from ray.experimental import internal_kv

    from sundog.rayapi.drain import Gcs

    client = internal_kv.internal_kv_get_gcs_client()
    return Gcs(client.address) if client is not None else None
