"""Prices that move and nodes that the cloud takes back: in the ledger, on the tags, in the order."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_cloud import ScriptedCloud

from sundog.capacity.provider import ElasticProvider
from sundog.capacity.records import WINDOW_S, spot_records
from sundog.capacity.state import PoolPlan, plans_to_dict
from sundog.clock import ManualClock
from sundog.clouds.base import Transient
from sundog.ledger import Entry, FileLedger
from sundog.market.offers import Offer, Record, repriced, rework

TAGS = {"ray-node-type": "worker", "ray-user-node-type": "gpu"}
CONFIG = {"InstanceType": "x"}


def offer(market: str, zone: str, usd: float) -> Offer:
    return Offer("aws", market, "r1", zone, "g5.xlarge", "G and VT", usd, 1.0, usd)  # type: ignore[arg-type]


PLAN = PoolPlan(
    "gpu", (offer("spot", "z1", 0.3), offer("spot", "z2", 0.35), offer("on-demand", "z1", 1.0))
)


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(1_000_000.0)
        self.cloud = ScriptedCloud(now_s=self.clock.now_s)
        self.ledger = FileLedger(folder / "ledger")
        self.elastic = self.restart()

    def restart(self) -> ElasticProvider:
        self.elastic = ElasticProvider(
            {"region": "r1", "sundog": {"budget_usd_hour": 5.0, **plans_to_dict({"gpu": PLAN})}},
            "c", cloud=self.cloud, clock=self.clock, ledger=self.ledger, drains=lambda: None,
            background=lambda work: work(),
        )  # fmt: skip
        return self.elastic

    def buy(self) -> str:
        [node] = self.elastic.create_node(CONFIG, TAGS, 1)
        return str(node)

    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.elastic.non_terminated_nodes({})

    def entries(self, kind: str) -> list[Entry]:
        return [e for e in self.ledger.since(0.0) if e.kind == kind]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))
    return World(tmp_path)


def test_a_price_that_moves_is_in_the_ledger_on_the_tags_and_in_the_budget(world: World) -> None:
    node = world.buy()
    world.cloud.prices = {("z1", "g5.xlarge"): 0.45, ("z2", "g5.xlarge"): 0.2}
    world.later(601)
    [entry] = world.entries("price")
    assert (entry.node, entry.usd_hour, entry.about["zone"]) == (node, 0.45, "z1")
    assert world.cloud.running[node].machine.tags["sundog:usd-hour"] == "0.450000"
    assert world.elastic.state()["usd_hour"] == pytest.approx(0.45)
    # The other zone is the cheaper one now, so the next node is bought there.
    second = world.buy()
    assert world.cloud.running[second].machine.zone == "z2"
    world.later(601)
    assert len(world.entries("price")) == 1, "a price that stands still is not written again"


def test_spot_that_costs_more_than_on_demand_is_tried_last(world: World) -> None:
    world.cloud.prices = {("z1", "g5.xlarge"): 1.5, ("z2", "g5.xlarge"): 1.6}
    world.later(601)
    node = world.buy()
    assert world.cloud.running[node].machine.market == "on-demand"


def test_prices_that_cannot_be_read_leave_the_old_ones_in_force(world: World) -> None:
    world.cloud.fault = lambda call: "before" if call == "spot_prices" else "ok"
    world.later(601)
    assert world.cloud.running[world.buy()].machine.zone == "z1"
    assert world.cloud.calls.count("spot_prices") == 1
    world.later(10)
    assert world.cloud.calls.count("spot_prices") == 1, "asked again at once"


def test_a_spot_node_that_vanishes_is_an_interruption_and_ends_its_cost(world: World) -> None:
    node = world.buy()
    world.later(1)
    world.clock.advance(200)  # no longer one that was just granted and may not be listed yet
    world.elastic.non_terminated_nodes({})
    gone_s = world.clock.now_s() + 5
    del world.cloud.running[node]
    world.later(5)
    assert world.entries("terminate") == [], "one listing without it proves nothing"
    world.later(61)
    [interruption], [end] = world.entries("interruption"), world.entries("terminate")
    assert interruption.node == end.node == node
    assert end.at_s == gone_s
    world.later(600)
    assert len(world.entries("terminate")) == 1
    record = spot_records(world.ledger.since(0.0), world.clock.now_s())["z1/g5.xlarge"]
    assert record.interruptions == 1
    assert record.node_hours == pytest.approx(206 / 3600)


def test_what_the_cluster_ends_itself_is_no_interruption(world: World) -> None:
    node = world.buy()
    world.elastic.terminate_node(node)
    for _ in range(3):
        world.later(100)
    assert len(world.entries("terminate")) == 1
    assert world.entries("interruption") == []


def test_a_listing_that_misses_a_node_for_a_moment_ends_nothing(world: World) -> None:
    node = world.buy()
    world.later(200)
    kept = world.cloud.running.pop(node)
    world.later(30)
    world.cloud.running[node] = kept
    world.later(61)
    world.later(61)
    assert world.entries("terminate") == []


def test_a_zone_that_interrupts_much_loses_its_place(world: World) -> None:
    for i in range(20):
        at_s = world.clock.now_s() - 3600.0
        about = {"market": "spot", "zone": "z1", "shape": "g5.xlarge"}
        for kind, after_s in (("launch", 0), ("interruption", 600), ("terminate", 601)):
            world.ledger.append(Entry(kind, at_s + after_s, f"old-{i}", "c", 0.3, about))  # type: ignore[arg-type]
    world.cloud.prices = {("z1", "g5.xlarge"): 0.3, ("z2", "g5.xlarge"): 0.31}
    assert world.cloud.running[world.buy()].machine.zone == "z1"
    world.restart()
    world.later(601)
    assert world.cloud.running[world.buy()].machine.zone == "z2"


def test_a_record_counts_each_node_once_and_only_the_last_month() -> None:
    about = {"market": "spot", "zone": "z", "shape": "s"}
    now_s = WINDOW_S * 2
    entries = [
        Entry("launch", now_s - 7200, "a", "c", 1.0, about),
        Entry("interruption", now_s - 3600, "a", "c", 1.0, about),  # its own agent
        Entry("interruption", now_s - 3590, "a", "c", 1.0, about),  # and the head
        Entry("terminate", now_s - 3600, "a", "c", 1.0, about),
        Entry("launch", now_s - 3600, "b", "c", 1.0, about),  # still there
        Entry("launch", 0.0, "old", "c", 1.0, about),
        Entry("interruption", 10.0, "old", "c", 1.0, about),
        Entry("terminate", 10.0, "old", "c", 1.0, about),
        Entry("launch", 0.0, "full", "c", 1.0, {**about, "market": "on-demand"}),
    ]
    assert spot_records(entries, now_s) == {"z/s": Record(2.0, 1)}


@given(st.floats(0, 1e4), st.integers(0, 1000))
def test_rework_lies_between_the_prior_and_what_was_seen(hours: float, seen: int) -> None:
    prior, found = rework(Record()), rework(Record(hours, seen))
    observed = rework(Record(1e12, 0)) if not hours else seen / hours * (360 / 3600)
    assert min(prior, observed) - 1e-9 <= found <= max(prior, observed) + 1e-9 or hours == 0


def test_repricing_keeps_every_rung_and_what_it_was_not_told() -> None:
    again = repriced(PLAN.offers, {("z2", "g5.xlarge"): 0.1}, {}, date(2026, 1, 2))
    assert sorted(o.key for o in again) == sorted(o.key for o in PLAN.offers)
    assert [(o.zone, o.usd_hour) for o in again] == [("z2", 0.1), ("z1", 0.3), ("z1", 1.0)]
    assert (again[0].priced_on, again[1].priced_on) == (date(2026, 1, 2), None)


def test_a_ledger_that_cannot_be_read_costs_only_history(world: World) -> None:
    class Broken:
        def append(self, entry: Entry) -> None: ...

        def since(self, start_s: float) -> object:
            raise Transient("away")

    world.ledger = Broken()  # type: ignore[assignment]
    world.restart()
    world.cloud.prices = {("z2", "g5.xlarge"): 0.1}
    world.later(601)
    assert world.cloud.running[world.buy()].machine.zone == "z2"
