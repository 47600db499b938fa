"""The ledger of a cluster: what ran is in it once, whatever answers are lost and whichever head looks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.autoscaler.node_launch_exception import NodeLaunchException
from scripted_cloud import ScriptedCloud, refusing

from sundog.capacity.launching import MISSED_S
from sundog.capacity.provider import ElasticProvider
from sundog.capacity.state import PoolPlan, plans_to_dict
from sundog.capacity.upkeep import PRICES_EVERY_S, SETTLED_S, in_a_thread
from sundog.clock import ManualClock
from sundog.clouds.base import Order, Transient
from sundog.clouds.gcp import Gcp
from sundog.clouds.ray_provider import RayCloud
from sundog.errors import StorageUnavailable
from sundog.ledger import Entry
from sundog.market.offers import Offer

TAGS = {"ray-node-type": "worker", "ray-user-node-type": "gpu"}
CONFIG = {"InstanceType": "x"}


def offer(market: str, zone: str, usd: float) -> Offer:
    return Offer("aws", market, "r1", zone, "g5.xlarge", "G and VT", usd, 1.0, usd)  # type: ignore[arg-type]


PLANS = plans_to_dict(
    {"gpu": PoolPlan("gpu", (offer("spot", "z1", 0.3), offer("on-demand", "z1", 1.0)))}
)


class Shared:
    """A ledger that outlives its heads, and that may be away."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.away = False
        self.asked = 0

    def append(self, entry: Entry) -> None:
        self.asked += 1
        if self.away:
            raise StorageUnavailable("the bucket is away")
        self.entries.append(entry)

    def since(self, start_s: float) -> Iterator[Entry]:
        return iter([e for e in self.entries if e.at_s >= start_s])

    def of(self, kind: str) -> list[Entry]:
        return [e for e in self.entries if e.kind == kind]


class Node(dict[str, Any]):
    """As Ray's provider for GCP keeps one of its last listing."""

    def get_labels(self) -> dict[str, str]:
        return dict(self)

    def is_running(self) -> bool:
        return True

    def get_internal_ip(self) -> str:
        return "10.0.0.2"

    def get_external_ip(self) -> None:
        return None


class RaysOwn:
    """Ray's provider for one zone of GCP, with calls that fail before or after they took effect."""

    def __init__(self) -> None:
        self.running: dict[str, Node] = {}
        self.ever: dict[str, Node] = {}
        self.fault: Callable[[str], str] = lambda call: "ok"
        self.refuse: Callable[[Order], Exception | None] = lambda order: None
        self._lock = threading.RLock()

    def _call(self, name: str, effect: Callable[[], Any]) -> Any:
        with self._lock:
            fault = self.fault(name)
            if fault == "before":
                raise TimeoutError(f"{name} did not arrive")
            done = effect()
        if fault == "after":
            raise TimeoutError(f"the answer to {name} was lost")
        return done

    def create_node(self, config: dict[str, Any], labels: dict[str, str], count: int) -> None:
        market = "spot" if config.get("scheduling", [{}])[0].get("preemptible") else "on-demand"
        asked = Order(market, "z1", config["machineType"], count, "", labels)

        def make() -> None:
            if self.refuse(asked) is not None:
                raise RuntimeError("ZONE_RESOURCE_POOL_EXHAUSTED")
            for _ in range(count):
                id_ = f"ray-{len(self.ever)}"
                self.running[id_] = self.ever[id_] = Node(labels)

        self._call("launch", make)

    def non_terminated_nodes(self, labels: dict[str, str]) -> list[str]:
        return self._call(
            "machines", lambda: [i for i, n in self.running.items() if labels.items() <= n.items()]
        )  # type: ignore[no-any-return]

    def _get_cached_node(self, id_: str) -> Node:
        return self.ever[id_]

    def set_node_tags(self, id_: str, labels: dict[str, str]) -> None:
        self._call("tag", lambda: self.ever[id_].update(labels))

    def terminate_node(self, id_: str) -> None:
        self._call("terminate", lambda: self.running.pop(id_, None))


class World:
    def __init__(self, rays: bool = False) -> None:
        self.clock = ManualClock(1_000_000.0)
        self.cloud: Any
        if rays:
            self.cloud = RaysOwn()
            self.asked: Any = RayCloud(Gcp(), {"z1": self.cloud}, self.clock)
        else:
            self.cloud = self.asked = ScriptedCloud(now_s=self.clock.now_s)
        self.ledger = Shared()
        self.background: Any = lambda work: work()
        self.head()

    def head(self) -> None:
        """A new head: it knows what the cloud's tags and the ledger say, and nothing else."""
        self.elastic = ElasticProvider(
            {"region": "r1", "sundog": PLANS}, "c", cloud=self.asked, clock=self.clock,
            ledger=self.ledger, drains=lambda: None, background=self.background,
        )  # fmt: skip

    def buy(self, count: int = 1) -> list[str]:
        return list(self.elastic.create_node(CONFIG, TAGS, count))

    def look(self, after_s: float = 0.0) -> list[str]:
        self.clock.advance(after_s)
        return self.elastic.non_terminated_nodes({})

    def lose_a_purchase(self) -> str:
        """A machine that was bought, though no call ever said so."""
        faults = {"launch": "after", "bought": "before"}
        self.cloud.fault = lambda call: faults.get(call, "ok")  # type: ignore[return-value]
        with pytest.raises(NodeLaunchException, match="lost"):
            self.buy()
        self.cloud.fault = lambda call: "ok"
        [node] = self.cloud.running
        return node

    def quiet_look(self) -> None:
        """As a head that lives some seconds while the cloud answers."""
        fault, self.cloud.fault = self.cloud.fault, lambda call: "ok"
        self.look(SETTLED_S)
        self.look()
        self.cloud.fault = fault

    def settle(self) -> None:
        """The ledger is read, then listed against it until what is gone counts as gone."""
        self.look(SETTLED_S)
        self.look()
        self.look(200.0)
        self.look(MISSED_S)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))
    return World()


def test_a_machine_whose_purchase_was_never_answered_is_in_the_ledger_from_its_birth(
    world: World,
) -> None:
    node = world.lose_a_purchase()
    born_s = world.cloud.running[node].machine.launched_s
    assert world.look(SETTLED_S) == [node]
    world.look(5.0)
    world.look(5.0)
    [entry] = world.ledger.of("launch")
    assert (entry.node, entry.at_s, entry.usd_hour) == (node, born_s, 0.3)
    assert entry.about["market"] == "spot"
    world.elastic.terminate_node(node)
    assert [e.node for e in world.ledger.of("terminate")] == [node]


def test_what_was_seen_and_ended_before_the_ledger_was_read_is_in_it_too(world: World) -> None:
    node = world.lose_a_purchase()
    assert world.look() == [node]
    world.elastic.terminate_node(node)
    world.settle()
    assert Counter((e.kind, e.node) for e in world.ledger.entries) == {
        ("launch", node): 1, ("terminate", node): 1,
    }  # fmt: skip


def test_a_head_that_came_anew_writes_no_second_launch(world: World) -> None:
    world.buy(2)
    world.head()
    world.settle()
    assert len(world.ledger.of("launch")) == 2
    assert world.ledger.of("terminate") == []


def test_a_node_that_went_while_no_head_looked_ends_in_the_ledger(world: World) -> None:
    gone, noticed, stays = world.buy(3)
    about = {"market": "spot"}
    world.ledger.append(Entry("interruption", world.clock.now_s() + 50, noticed, "c", 0.3, about))
    for node in (gone, noticed):
        del world.cloud.running[node]
    world.clock.advance(7200.0)
    world.head()
    world.settle()
    ends = {e.node: e.at_s for e in world.ledger.of("terminate")}
    assert set(ends) == {gone, noticed}
    assert ends[noticed] == 1_000_050.0, "its own agent wrote down when"
    assert ends[gone] > 1_007_200.0, "nobody knows when; certainly before it was missed"
    assert [e.node for e in world.ledger.of("interruption")] == [noticed], (
        "nobody knows why it went"
    )
    world.head()
    world.settle()
    assert len(world.ledger.of("terminate")) == 2
    assert world.look() == [stays]


def test_nodes_of_another_cluster_and_of_long_ago_are_left_alone(world: World) -> None:
    world.ledger.append(Entry("launch", world.clock.now_s(), "i-theirs", "another", 1.0))
    [node] = world.buy()
    world.ledger.entries.clear()  # as if it were older than what is read of the ledger
    world.clock.advance(60 * 86400.0)
    world.head()
    world.settle()
    assert world.ledger.entries == []
    world.elastic.terminate_node(node)
    assert [e.node for e in world.ledger.of("terminate")] == [node]


def test_entries_that_could_not_be_written_are_written_later_and_once(world: World) -> None:
    world.ledger.away = True
    [node] = world.buy()
    world.elastic.terminate_node(node)
    assert any("is away" in d["why"] for d in world.elastic.state()["decisions"])
    assert world.ledger.asked == 1, "nothing waits for a ledger that has just been away"
    world.ledger.away = False
    world.look()
    assert world.ledger.entries == [], "a root that was away is not asked at every listing"
    world.look(61.0)
    world.look(61.0)
    assert [(e.kind, e.node) for e in world.ledger.entries] == [
        ("launch", node),
        ("terminate", node),
    ]


def test_an_end_that_we_asked_for_is_no_interruption_though_the_answer_was_lost(
    world: World,
) -> None:
    [node] = world.buy()
    world.cloud.fault = lambda call: "after" if call == "terminate" else "ok"
    with pytest.raises(Transient):
        world.elastic.terminate_node(node)
    assert world.cloud.running == {}
    world.settle()
    assert [e.node for e in world.ledger.of("terminate")] == [node]
    assert world.ledger.of("interruption") == []


def test_a_cloud_that_is_slow_with_prices_holds_up_no_listing(world: World) -> None:
    answered, asked = threading.Event(), threading.Event()

    def slow(shapes: Any) -> dict[Any, float]:
        asked.set()
        assert answered.wait(60)
        return {("z1", "g5.xlarge"): 0.2}

    world.background = in_a_thread
    world.cloud.spot_prices = slow  # type: ignore[method-assign,assignment]
    world.head()
    [node] = world.buy()
    world.clock.advance(PRICES_EVERY_S)
    assert world.look() == [node]
    assert asked.wait(60)
    assert world.look(PRICES_EVERY_S) == [node], "and nobody asks again meanwhile"
    answered.set()
    for thread in threading.enumerate():
        if thread.name == "sundog-upkeep":
            thread.join(60)
    assert world.cloud.running[node].machine.tags["sundog:usd-hour"] == "0.200000"


actions = st.tuples(
    st.sampled_from(["create", "create", "end", "vanish", "head", "look", "threads", "later"]),
    st.integers(1, 3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("rays", [False, True], ids=["own calls", "around Ray's provider"])
@given(
    st.lists(st.sampled_from(["ok", "ok", "ok", "before", "after"]), max_size=60),
    st.lists(actions, max_size=10),
    st.sets(st.sampled_from(["spot", "on-demand"]), max_size=1),
)
def test_every_machine_that_ever_ran_has_one_launch_and_at_most_one_end(
    rays: bool, script: list[str], steps: list[tuple[str, int]], refused: set[str]
) -> None:
    """Calls that fail, threads, machines that vanish and heads that come anew.

    When the cloud has healed, the ledger says of every machine what became of it.
    """
    world, left, lock = World(rays), iter(script), threading.Lock()

    def fault(call: str) -> Any:
        with lock:
            return next(left, "ok")

    world.cloud.fault = fault
    world.cloud.refuse = lambda o: refusing(o.market)(o) if o.market in refused else None

    def one(action: str, count: int) -> None:
        try:
            if action == "create":
                world.buy(count)
            elif action == "end":
                world.elastic.terminate_nodes(world.elastic.non_terminated_nodes({})[:count])
            else:
                world.look()
        except (NodeLaunchException, Transient):
            pass

    for action, count in steps:
        if action == "head":
            world.head()
            world.quiet_look()
        elif action == "later":
            world.clock.advance(40.0 * count)
        elif action == "vanish":
            world.quiet_look()  # of a machine that nobody ever saw there is nothing to write
            for id_ in list(world.cloud.running)[:count]:
                del world.cloud.running[id_]
        elif action == "threads":
            work = [("create", 1), ("create", 2), ("look", 1), ("end", 1)]
            threads = [threading.Thread(target=one, args=w) for w in work]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        else:
            one(action, count)
    world.cloud.fault = lambda call: "ok"
    world.settle()
    world.settle()
    ran = set(world.cloud.ever)
    launches = Counter(e.node for e in world.ledger.of("launch"))
    assert launches == dict.fromkeys(ran, 1)
    ends = Counter(e.node for e in world.ledger.of("terminate"))
    assert set(ends.values()) <= {1}
    assert ran - set(ends) == set(world.cloud.running), "open in the ledger and gone, or back"
