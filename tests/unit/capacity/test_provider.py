"""The elastic provider on a scripted cloud: one call a rung, nothing leaked, a head that restarts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.autoscaler.node_launch_exception import NodeLaunchException
from scripted_cloud import ScriptedCloud, refusing

from sundog.capacity.provider import ElasticProvider
from sundog.capacity.state import PoolPlan, plans_to_dict
from sundog.capacity.state_file import state_path
from sundog.clock import ManualClock
from sundog.clouds.base import AuthRefused, Order, QuotaRefused, Rejected, Transient
from sundog.errors import ClusterError, FormatTooNew, StorageUnavailable
from sundog.ledger import Entry, FileLedger, read_entries
from sundog.market.offers import Offer

CONFIG = {"InstanceType": "m6i.xlarge", "SubnetIds": ["s1"]}
TAGS = {"ray-node-type": "worker", "ray-user-node-type": "gpu", "ray-node-name": "ray-c-worker"}


def offer(market: str, zone: str, usd: float) -> Offer:
    return Offer("aws", market, "r1", zone, "g5.xlarge", "G and VT", usd, 1.0, usd)  # type: ignore[arg-type]


LADDER = (
    offer("spot", "z1", 0.3), offer("spot", "z2", 0.35),
    offer("on-demand", "z1", 1.0), offer("on-demand", "z2", 1.0),
)  # fmt: skip


class Entries(list[Entry]):
    def since(self, start_s: float) -> Iterator[Entry]:
        return iter(self)

    def append(self, entry: Entry) -> None:
        super().append(entry)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))


def provider(
    cloud: ScriptedCloud, ledger: Any = None, clock: ManualClock | None = None, **change: Any
) -> ElasticProvider:
    pool = PoolPlan("gpu", LADDER, **change.pop("pool", {}))
    ours = {"cloud": "aws", **change, **plans_to_dict({"gpu": pool})}
    return ElasticProvider(
        {"region": "r1", "sundog": ours}, "c", cloud=cloud,
        ledger=ledger if ledger is not None else Entries(), clock=clock or ManualClock(1000.0),
    )  # fmt: skip


def test_spot_refused_means_on_demand_in_the_same_call_one_call_a_rung() -> None:
    cloud = ScriptedCloud(refuse=refusing("spot"))
    made = provider(cloud).create_node(CONFIG, TAGS, 1)
    assert [m.market for m in made.values()] == ["on-demand"]
    assert [(o.market, o.zone) for o in cloud.orders] == [
        ("spot", "z1"), ("spot", "z2"), ("on-demand", "z1")
    ]  # fmt: skip


def test_a_quota_refusal_costs_one_call_for_the_whole_market() -> None:
    cloud = ScriptedCloud(refuse=refusing("spot", QuotaRefused))
    provider(cloud).create_node(CONFIG, TAGS, 1)
    assert [o.market for o in cloud.orders] == ["spot", "on-demand"]


def test_refused_rungs_are_left_alone_until_they_have_cooled_then_spot_is_back() -> None:
    clock, cloud = ManualClock(0.0), ScriptedCloud(refuse=refusing("spot"))
    elastic = provider(cloud, clock=clock)
    elastic.create_node(CONFIG, TAGS, 1)
    elastic.create_node(CONFIG, TAGS, 1)
    assert [o.market for o in cloud.orders].count("spot") == 2
    cloud.refuse = lambda order: None
    clock.advance(31.0)
    [again] = elastic.create_node(CONFIG, TAGS, 1).values()
    assert again.market == "spot"


def test_when_all_refuse_ray_is_told_why_and_when_and_status_can_read_it() -> None:
    cloud = ScriptedCloud(
        refuse=lambda o: refusing(o.market)(o),
    )
    elastic = provider(cloud)
    with pytest.raises(NodeLaunchException) as caught:
        elastic.create_node(CONFIG, TAGS, 2)
    assert caught.value.category == "refused"
    assert "next try in 30 s" in caught.value.description
    assert cloud.running == {}
    state = json.loads(state_path("c").read_text())
    assert state["waiting"]["gpu"]["state"] == "refused"
    assert state["waiting"]["gpu"]["next_try_s"] == 1030.0


def test_the_budget_refuses_with_its_reason_and_counts_the_head() -> None:
    cloud = ScriptedCloud()
    elastic = provider(cloud, budget_usd_hour=0.7, head_usd_hour=0.2)
    with pytest.raises(NodeLaunchException, match=r"1 of 3 nodes launched.*budget of \$0.70"):
        elastic.create_node(CONFIG, TAGS, 3)
    assert len(cloud.running) == 1
    with pytest.raises(NodeLaunchException, match="budget"):
        elastic.create_node(CONFIG, TAGS, 1)


def test_what_no_rung_can_cure_is_raised_at_once() -> None:
    cloud = ScriptedCloud(refuse=lambda o: AuthRefused("UnauthorizedOperation"))
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        provider(cloud).create_node(CONFIG, TAGS, 1)
    assert len(cloud.orders) == 1


@pytest.mark.parametrize(
    ("kind", "state", "first_s"),
    [(AuthRefused, "denied", 30.0), (Rejected, "rejected", 30.0), (Transient, "cloud-away", 5.0)],
)
def test_what_stops_the_whole_pool_is_said_and_not_repeated_at_once(
    kind: type[Exception], state: str, first_s: float
) -> None:
    clock, cloud = ManualClock(0.0), ScriptedCloud(refuse=lambda o: kind("Wrong: so it is"))
    elastic = provider(cloud, clock=clock)
    with pytest.raises(NodeLaunchException, match="so it is"):
        elastic.create_node(CONFIG, TAGS, 1)
    calls, now_s = len(cloud.orders), clock.now_s()
    wait = json.loads(state_path("c").read_text())["waiting"]["gpu"]
    assert (wait["state"], wait["next_try_s"]) == (state, now_s + first_s)
    assert "so it is" in wait["why"]
    assert any(d["what"] == state for d in elastic.state()["decisions"])
    with pytest.raises(NodeLaunchException, match="next try in") as again:
        elastic.create_node(CONFIG, TAGS, 1)
    assert again.value.category == state
    assert len(cloud.orders) == calls, "asked again before it could have passed"
    clock.advance(first_s)
    with pytest.raises(NodeLaunchException):
        elastic.create_node(CONFIG, TAGS, 1)
    assert len(cloud.orders) > calls
    cloud.refuse = lambda order: None
    clock.advance(2 * first_s)
    assert elastic.create_node(CONFIG, TAGS, 1)
    assert elastic.state()["waiting"] == elastic.state()["cooldowns"] == {}


def test_the_head_is_had_whatever_the_budget_for_it_is_in_there_already() -> None:
    cloud = ScriptedCloud()
    tight = provider(cloud, budget_usd_hour=0.3, head_usd_hour=0.2)
    head = {"ray-node-type": "head", "ray-user-node-type": "head"}
    tight.create_node(CONFIG, head, 1)
    # A head that was lost is bought anew though workers use the budget up.
    full = provider(cloud, budget_usd_hour=0.6, head_usd_hour=0.2)
    full.create_node(CONFIG, TAGS, 1)
    assert full.create_node(CONFIG, head, 1)
    with pytest.raises(NodeLaunchException, match="budget"):
        full.create_node(CONFIG, TAGS, 1)


def test_every_launch_is_born_with_its_tags_and_a_token_of_its_own() -> None:
    cloud = ScriptedCloud()
    provider(cloud).create_node(CONFIG, TAGS, 1)
    provider(cloud).create_node(CONFIG, TAGS, 1)
    tags = cloud.orders[0].tags
    assert tags["ray-cluster-name"] == "c"
    assert tags["sundog:pool"] == "gpu"
    assert tags["Name"] == "ray-c-worker"
    assert tags["sundog:usd-hour"] == "0.300000"
    assert "cheapest" in tags["sundog:why"]
    assert len({o.token for o in cloud.orders}) == 2


def test_a_new_head_rebuilds_its_state_from_the_tags() -> None:
    cloud = ScriptedCloud()
    before = provider(cloud, pool={"on_demand_floor": 1})
    before.create_node(CONFIG, TAGS, 2)
    after = provider(cloud, pool={"on_demand_floor": 1}, budget_usd_hour=1.5)
    ids = after.non_terminated_nodes({"ray-node-type": "worker"})
    assert sorted(ids) == sorted(cloud.running)
    assert {after.node_tags(i)["ray-node-name"] for i in ids} == {"ray-c-worker"}
    assert after.non_terminated_nodes({"ray-node-type": "head"}) == []
    with pytest.raises(NodeLaunchException, match="budget"):
        after.create_node(CONFIG, TAGS, 1)  # 1.0 + 0.3 run already: the floor is known to be met


def test_the_head_is_on_demand_in_any_zone_that_has_it() -> None:
    cloud = ScriptedCloud(refuse=lambda o: refusing("on-demand")(o) if o.zone == "z1" else None)
    head = {"ray-node-type": "head", "ray-user-node-type": "head"}
    [machine] = provider(cloud, head_usd_hour=0.2).create_node(CONFIG, head, 1).values()
    assert (machine.market, machine.zone, machine.shape) == ("on-demand", "z2", "m6i.xlarge")


def test_launches_and_terminations_are_in_the_ledger_with_their_price(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    elastic = provider(ScriptedCloud(), FileLedger(path))
    [node] = elastic.create_node(CONFIG, TAGS, 1)
    elastic.terminate_node(node)
    entries = list(read_entries(path))
    assert [(e.kind, e.node, e.usd_hour) for e in entries] == [
        ("launch", node, 0.3), ("terminate", node, 0.3)
    ]  # fmt: skip
    assert entries[0].about["zone"] == "z1"


def test_a_ledger_that_cannot_be_written_stops_no_launch_and_is_said() -> None:
    class Broken:
        def append(self, entry: Entry) -> None:
            raise StorageUnavailable("the bucket is away")

    cloud = ScriptedCloud()
    elastic = provider(cloud, Broken())
    assert len(elastic.create_node(CONFIG, TAGS, 1)) == len(cloud.running) == 1
    assert any("the bucket is away" in d["why"] for d in elastic.state()["decisions"])


def test_a_file_without_our_section_or_from_a_later_sundog_says_what_to_do() -> None:
    with pytest.raises(ClusterError, match="cluster compile"):
        ElasticProvider({"region": "r1"}, "c", cloud=ScriptedCloud(), ledger=Entries())
    with pytest.raises(FormatTooNew):
        ElasticProvider(
            {"region": "r1", "sundog": {"format": 9, "pools": {}}}, "c", cloud=ScriptedCloud()
        )


def test_threads_that_launch_at_once_stay_within_the_budget_together() -> None:
    cloud = ScriptedCloud()
    elastic = provider(cloud, budget_usd_hour=1.0)
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        try:
            elastic.create_node(CONFIG, TAGS, 1)
        except NodeLaunchException:
            return

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(cloud.running) == 3  # 0.9 of 1.0 dollars an hour
    assert sorted(elastic.non_terminated_nodes({})) == sorted(cloud.running)


faults = st.lists(st.sampled_from(["ok", "ok", "before", "after"]), min_size=1, max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    faults,
    st.lists(
        st.tuples(st.sampled_from(["create", "end", "list", "tag"]), st.integers(1, 4)), max_size=8
    ),
    st.sets(st.sampled_from(["spot", "on-demand"]), max_size=1),
    st.integers(1, 4),
)
def test_nothing_is_leaked_or_bought_twice_whatever_calls_fail(
    script: list[str], actions: list[tuple[str, int]], refused: set[str], most: int
) -> None:
    """Failures at any call, before or after it took effect. Then the cloud heals: everything that

    runs is listed to Ray, and what Ray ends is gone.
    """
    left = iter(script)
    cloud = ScriptedCloud(
        fault=lambda call: next(left, "ok"),  # type: ignore[arg-type,return-value]
        refuse=lambda o: refusing(o.market)(o) if o.market in refused else None,
        grants=lambda o: min(o.count, most),
    )
    clock = ManualClock(1000.0)
    elastic = provider(cloud, clock=clock)
    asked = 0
    for action, count in actions:
        clock.advance(61.0)  # whatever held the pool has passed
        try:
            if action == "create":
                asked += count
                made = elastic.create_node(CONFIG, TAGS, count)
                assert len(made) == count
            elif action == "end":
                elastic.terminate_nodes(elastic.non_terminated_nodes({})[:count])
            elif action == "tag":
                for node in elastic.non_terminated_nodes({})[:count]:
                    elastic.set_node_tags(node, {"ray-node-status": "up-to-date"})
                    assert cloud.running[node].machine.tags["ray-node-status"] == "up-to-date"
            else:
                elastic.non_terminated_nodes({})
        except (NodeLaunchException, Transient):
            pass
        assert len(cloud.running) <= asked, "a request was bought twice"
    cloud.fault = lambda call: "ok"
    assert sorted(elastic.non_terminated_nodes({})) == sorted(cloud.running)
    tokens: dict[str, Order] = {}
    for order in cloud.orders:
        assert tokens.setdefault(order.token, order) == order, "one token, two different orders"
    elastic.terminate_nodes(elastic.non_terminated_nodes({}))
    assert cloud.running == {}
    assert elastic.non_terminated_nodes({}) == []
