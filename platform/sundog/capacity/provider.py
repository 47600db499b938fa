"""Ray's node provider with a ladder: `provider: {type: external, module: sundog.capacity.…}`.

Translates between Ray's node provider interface and `launching.Buyer`; everything it must remember
is in the cloud's tags, so a new head starts where the old one stopped.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider

from sundog.capacity.cloud_of import make_cloud
from sundog.capacity.launching import Buyer, NothingToBuy, Request
from sundog.capacity.standins import StandIns, ray_of_this_process
from sundog.capacity.state import PoolPlan, plans_from_dict
from sundog.capacity.state_file import ledger_path, write_state
from sundog.capacity.tags import TYPE_TAG
from sundog.capacity.upkeep import Background, Upkeep, in_a_thread
from sundog.clock import WALL, Clock
from sundog.clouds.base import Cloud, Machine
from sundog.errors import CapacityError, ClusterError, SundogError
from sundog.ledger import FileLedger, Ledger, RootLedger
from sundog.market.offers import Offer
from sundog.rayapi.drain import Drains
from sundog.rayapi.launch_reason import show_causes

logger = logging.getLogger(__name__)

CLUSTER_TAG = "ray-cluster-name"
NAME_TAG, RAY_NAME = "Name", "ray-node-name"


class ElasticProvider(NodeProvider):  # type: ignore[misc]
    """Spot first, the next rung at once, every decision with its reason."""

    def __init__(
        self, provider_config: dict[str, Any], cluster_name: str, *, cloud: Cloud | None = None,
        ledger: Ledger | None = None, clock: Clock = WALL,
        drains: Callable[[], Drains | None] | None = None, background: Background = in_a_thread,
    ) -> None:  # fmt: skip
        super().__init__(provider_config, cluster_name)
        ours = provider_config.get("sundog")
        if not isinstance(ours, dict):
            raise ClusterError(
                "the cluster file has no `provider.sundog` section",
                "compile it: sundog cluster compile cluster-configs/specs/NAME.yaml",
            )
        show_causes()
        self._plans = plans_from_dict(ours)
        self._efa = frozenset(ours.get("efa") or ())
        self._clock = clock
        self._buyer = Buyer(
            cloud or make_cloud(provider_config, cluster_name), cluster_name,
            ledger or make_ledger(ours, cluster_name),
            budget_usd_hour=ours.get("budget_usd_hour"), head_usd_hour=ours.get("head_usd_hour"),
            clock=clock,
        )  # fmt: skip
        self._upkeep = Upkeep(self._buyer, self._plans, clock, background)
        self._stand_ins = StandIns(self._buyer, self._plans, clock, drains or ray_of_this_process)
        self._lock = threading.Lock()
        self._told = ""

    # Listing and looking.

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        wanted = to_cloud_tags(tag_filters)
        found = [
            m.id
            for m in self._buyer.machines()
            if all(m.tags.get(k) == v for k, v in wanted.items())
        ]
        self._upkeep.step()
        self._stand_ins.step()
        self._tell()
        return found

    def _machine(self, node_id: str) -> Machine | None:
        machine = self._buyer.known(node_id)
        if machine is None:
            self._buyer.machines()
            machine = self._buyer.known(node_id)
        return machine

    def is_running(self, node_id: str) -> bool:
        machine = self._machine(node_id)
        return machine is not None and machine.state == "running"

    def is_terminated(self, node_id: str) -> bool:
        return self._machine(node_id) is None

    def node_tags(self, node_id: str) -> dict[str, str]:
        machine = self._machine(node_id)
        return from_cloud_tags(machine.tags) if machine else {}

    def external_ip(self, node_id: str) -> str | None:
        return self._address(node_id, "external_ip")

    def internal_ip(self, node_id: str) -> str | None:
        return self._address(node_id, "internal_ip")

    def _address(self, node_id: str, kind: str) -> str | None:
        machine = self._machine(node_id)
        if machine is not None and getattr(machine, kind) is None:
            self._buyer.machines()  # addresses come a moment after the grant
            machine = self._buyer.known(node_id)
        return getattr(machine, kind) if machine else None

    def set_node_tags(self, node_id: str, tags: Mapping[str, str]) -> None:
        self._buyer.retag(node_id, to_cloud_tags(tags))

    # Buying and giving back.

    def create_node(
        self, node_config: dict[str, Any], tags: Mapping[str, str], count: int
    ) -> dict[str, Any]:
        """All the machines by id, or NodeLaunchException with the reason that Ray logs."""
        try:
            request = self._request(node_config, tags, count)
            bought = self._buyer.buy(request)
        except NothingToBuy as error:
            raise _for_ray(error.wait.state, error.message) from error
        except CapacityError as error:
            raise _for_ray(type(error).__name__, str(error)) from error
        finally:
            self._tell()
        if len(bought) < count:
            # Ray gives the granted ones to their requests by listing them, and asks again at once
            # for those it is told have failed; told nothing, it would wait ten minutes.
            wait = self._buyer.waiting.get(request.pool.name)
            why = wait.why if wait else "see the capacity state"
            raise _for_ray("partial", f"{len(bought)} of {count} nodes launched; {why}")
        return {m.id: m for m in bought}

    def _request(self, config: dict[str, Any], tags: Mapping[str, str], count: int) -> Request:
        kind = tags.get(TYPE_TAG, "")
        born = {**to_cloud_tags(tags), CLUSTER_TAG: self.cluster_name}
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._head_plan(kind, config)
        else:
            # The budget and the floor are about what runs now, not what ran a minute ago.
            self._buyer.machines()
        head = tags.get("ray-node-type") == "head"
        return Request(plan, count, config, born, kind in self._efa, in_budget=not head)

    def _head_plan(self, name: str, config: dict[str, Any]) -> PoolPlan:
        """The head: its one shape, on-demand, in whichever of the cluster's zones has it."""
        ours, price = self.provider_config, self._buyer.head_usd_hour
        region, cloud = ours.get("region") or ours.get("location", ""), ours["sundog"]["cloud"]
        shape = head_shape(config)
        offers = tuple(
            Offer(cloud, "on-demand", region, zone, shape, "head", price or 0.0, price, price or 0.0)
            for zone in self._buyer.cloud.zones(config)
        )  # fmt: skip
        return PoolPlan("head" if name in ("", "head") else name, offers)

    def terminate_node(self, node_id: str) -> None:
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        self._buyer.give_back(list(node_ids))
        self._tell()

    # The cluster file.

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The security group with exactly the spec's ports, then Ray's own bootstrap for AWS."""
        from sundog.capacity.bootstrap import bootstrap

        return bootstrap(cluster_config)

    # Telling.

    def state(self) -> dict[str, Any]:
        """Cool-downs, waits and the last decisions, as `sundog cluster status` shows them."""
        buyer = self._buyer
        return {
            "format": 1,
            "cluster": self.cluster_name,
            "at_s": self._clock.now_s(),
            "usd_hour": buyer.view().spent_usd_hour,
            "budget_usd_hour": buyer.budget_usd_hour,
            "waiting": {
                n: {"state": w.state, "why": w.why, "next_try_s": w.next_try_s,
                    "asked_s": buyer.waited_s.get(n)}
                for n, w in dict(buyer.waiting).items()
            },
            "cooldowns": {
                k: {"until_s": c.until_s, "failures": c.failures, "reason": c.reason}
                for k, c in dict(buyer.cooldowns).items()
            },
            "decisions": list(buyer.decisions),
        }  # fmt: skip

    def _tell(self) -> None:
        """Write the state where `status` reads it, when it changed. A full disk stops no launch."""
        state = self.state()
        key = json.dumps([state["waiting"], state["cooldowns"], state["decisions"]], sort_keys=True)
        with self._lock:
            if key == self._told:
                return
            try:
                write_state(self.cluster_name, state)
            except OSError as error:
                logger.warning("capacity state not written: %s", error)
            else:
                self._told = key


def _for_ray(category: str, why: str) -> NodeLaunchException:
    return NodeLaunchException(category[:20], why, sys.exc_info())


def to_cloud_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Ray's node name is the machine's Name."""
    return {NAME_TAG if k == RAY_NAME else k: v for k, v in tags.items()}


def from_cloud_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {RAY_NAME if k == NAME_TAG else k: v for k, v in tags.items()}


def head_shape(config: Mapping[str, Any]) -> str:
    """The machine's shape in a node configuration of any of the three clouds."""
    azure = config.get("azure_arm_parameters") or {}
    return str(config.get("InstanceType") or config.get("machineType") or azure.get("vmSize") or "")


def make_ledger(ours: Mapping[str, Any], cluster: str) -> Ledger:
    """The storage root's ledger, else a file beside the state."""
    if ours.get("root"):
        from sundog.storage.root import open_root

        try:
            return RootLedger(open_root(ours["root"]))
        except SundogError as error:
            logger.warning("no ledger in the storage root, writing to a file: %s", error)
    return FileLedger(ledger_path(cluster))
