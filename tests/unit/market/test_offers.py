"""The ladder: order, limits, and what an unknown price does to a rung."""

from __future__ import annotations

from typing import Any

from sundog.market.offers import Offer, Record, ladder, rework
from sundog.market.prices import snapshot
from sundog.market.shapes import catalogue
from sundog.spec.cluster import Need


def rungs(gpu: str = "A10G x1", **change: Any) -> list[Offer]:
    book = snapshot()
    arguments: dict[str, Any] = {
        "cloud": "aws", "region": "us-east-1", "zones": book.zones("aws", "us-east-1"),
        "shapes": catalogue().fitting("aws", Need.model_validate({"gpu": gpu})), "book": book,
        "markets": ("spot", "on-demand"),
    }  # fmt: skip
    return ladder(**(arguments | change))


def test_spot_comes_first_and_each_market_is_sorted_by_expected_cost() -> None:
    offers = rungs()
    markets = [o.market for o in offers]
    assert markets == sorted(markets, key=["spot", "on-demand"].index)
    known = [o.expected_usd_hour for o in offers if o.market == "spot" and o.usd_hour]
    assert known == sorted(known, key=float)
    assert known
    assert offers[0].usd_hour == 0.3018


def test_an_unknown_spot_price_is_bounded_by_on_demand_and_ranks_after_known_ones() -> None:
    unpriced = [o for o in rungs() if o.market == "spot" and o.usd_hour is None]
    assert unpriced
    assert all(o.ceiling_usd_hour == 1.212 for o in unpriced)
    nowhere = rungs(region="ap-northeast-3", zones=["apne3-az1"])
    assert nowhere
    assert all(o.ceiling_usd_hour is None for o in nowhere)


def test_a_zone_with_interruptions_falls_down_the_ladder() -> None:
    first = rungs()[0]
    record = {f"{first.zone}/{first.shape}": Record(node_hours=40, interruptions=30)}
    assert rungs(records=record)[0].zone != first.zone
    assert rework(Record(40, 30)) > rework(Record()) > rework(Record(400, 0)) > 0


def test_limits_hold() -> None:
    assert all(o.usd_hour is None or o.usd_hour <= 1.1 for o in rungs(max_price=1.1))
    assert len([o for o in rungs(rungs=3) if o.market == "spot"]) == 3
    assert len({o.shape for o in rungs(rungs=4) if o.market == "on-demand"}) == 2
    assert {o.market for o in rungs(markets=("spot",))} == {"spot"}


def test_a_gang_in_one_zone_pays_no_transfer_and_a_dearer_disk_costs_more() -> None:
    spread, gang = rungs()[0], rungs(one_zone=True)[0]
    assert spread.side_usd_hour > gang.side_usd_hour == 0.0
    gp3 = rungs(disk_gib=1000, one_zone=True)[0]
    io2 = rungs(disk_gib=1000, disk_kind="io2", one_zone=True)[0]
    assert io2.side_usd_hour > gp3.side_usd_hour > 0
