"""The plan: totals, what would be refused, quotas, and no dollars without a price."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from sundog.capacity.plan import plan_cluster, render
from sundog.clock import ManualClock

SPECS = Path(__file__).parents[3] / "cluster-configs" / "specs"
NOW = ManualClock(datetime(2026, 7, 30, tzinfo=UTC).timestamp())


def test_totals_add_up_from_the_first_rungs() -> None:
    plan = plan_cluster(SPECS / "aws-serve.yaml", clock=NOW)
    gpu = plan.pools[0]
    full = next(r for r in gpu.rungs if r.market == "on-demand")
    head = 0.1728
    assert plan.usd_hour_min == pytest.approx(head + full.usd_hour)  # type: ignore[operator]
    assert plan.usd_hour_max_on_demand > plan.usd_hour_max > plan.usd_hour_min  # type: ignore[operator]
    assert full.age_days == 10


def test_over_budget_is_said_before_it_happens() -> None:
    plan = plan_cluster(SPECS / "aws-train.yaml", clock=NOW)
    assert plan.usd_hour_max is not None
    assert (plan.usd_hour_max > 130) == bool([r for r in plan.refused if "over the budget" in r])


def test_quotas_say_what_to_ask_for() -> None:
    plan = plan_cluster(SPECS / "aws-train.yaml", clock=NOW, allowed={("P5", "spot"): 192})
    p_spot = next(q for q in plan.quotas if (q.family, q.market) == ("P5", "spot"))
    assert (p_spot.needed, p_spot.ask_for) == (384, 192)
    assert "ask for 192 more" in render(plan)
    unread = next(q for q in plan.quotas if (q.family, q.market) == ("G and VT", "spot"))
    assert unread.allowed is None, "a quota that nobody read is not zero"
    assert "not asked" in render(plan_cluster(SPECS / "aws-train.yaml", clock=NOW))


def test_no_price_is_said_never_guessed() -> None:
    text = render(plan_cluster(SPECS / "azure.yaml", clock=NOW))
    assert "no price" in text
    assert "$" not in text.split("all on-demand")[0].replace("$/h", "")
    assert "your own machines" in render(plan_cluster(SPECS / "onprem.yaml", clock=NOW))


def test_the_table_shows_each_market_and_its_age() -> None:
    text = render(plan_cluster(SPECS / "aws-train.yaml", clock=NOW))
    assert "spot" in text
    assert "on-demand" in text
    assert "days old, refresh them" in text
    assert "more" in text
    assert text.count("\n") < render(plan_cluster(SPECS / "aws-train.yaml"), all_rungs=True).count(
        "\n"
    )


def test_disks_and_transfer_are_said_apart_from_what_a_budget_counts() -> None:
    plan = plan_cluster(SPECS / "aws-serve.yaml", clock=NOW)
    nodes = 10 + 6
    head_disk = 100 * 0.08 / 730
    disks = nodes * 200 * 0.08 / 730 + head_disk
    assert plan.side_usd_hour_max == pytest.approx(disks + nodes * 0.02)
    assert "of disks and transfer between zones" in render(plan)
    assert plan_cluster(SPECS / "onprem.yaml", clock=NOW).side_usd_hour_max is None


def test_a_rung_bounded_by_a_dated_price_has_that_prices_age() -> None:
    rungs = [r for p in plan_cluster(SPECS / "aws-train.yaml", clock=NOW).pools for r in p.rungs]
    bounded = [r for r in rungs if r.usd_hour is None and r.at_most_usd_hour is not None]
    assert bounded
    assert {r.age_days for r in bounded} == {10}
