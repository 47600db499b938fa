"""Prices: bad rows are rejected with a reason, ages are shown, and no price is None."""

from __future__ import annotations

from datetime import UTC, date, datetime

from hypothesis import given
from hypothesis import strategies as st

from sundog.market.prices import Price, PriceBook, cost_between, price_at, snapshot


def row(market: str, usd: float, shape: str = "g5.xlarge", zone: str = "") -> Price:
    return Price("aws", market, "us-east-1", zone, shape, usd, date(2026, 7, 20))  # type: ignore[arg-type]


def test_bad_rows_are_rejected_with_a_reason() -> None:
    book = PriceBook(
        [row("spot", 1.2, zone="use1-az1"), row("on-demand", 1.0), row("on-demand", 1.0, "g5.huge"),
         row("on-demand", -1.0, "g5.2xlarge"), row("spot", 0.3, zone="use1-az2")]
    )  # fmt: skip
    reasons = sorted(r.reason for r in book.rejected)
    assert len(reasons) == 3
    assert "above on-demand $1" in " ".join(reasons)
    assert any("no shape 'g5.huge'" in r for r in reasons)
    assert any("not a price" in r for r in reasons)
    assert book.find("aws", "spot", "us-east-1", "use1-az1", "g5.xlarge") is None


def test_the_snapshot_holds_to_its_own_rules_and_says_its_age() -> None:
    book = snapshot()
    for price in book.rows():
        if price.market == "spot":
            full = book.find(price.cloud, "on-demand", price.region, "", price.shape)
            assert full is None or price.usd_hour <= full.usd_hour
    full = book.find("aws", "on-demand", "us-east-1", "use1-az1", "g5.xlarge")
    assert full is not None
    assert full.usd_hour == 1.006
    assert full.age_days(datetime(2026, 7, 30, tzinfo=UTC).timestamp()) == 10
    gcp = book.find("gcp", "spot", "us-central1", "us-central1-a", "a2-highgpu-1g")
    assert gcp is not None
    assert gcp.age_days(0) is None
    assert not [p for p in book.rows() if p.cloud == "azure"], "no Azure price of known licence"


def test_a_newer_price_replaces_an_older_one() -> None:
    newer = Price(
        "aws", "on-demand", "us-east-1", "", "g5.xlarge", 0.9, date(2026, 11, 1), "account"
    )
    assert snapshot().with_more([newer]).find(
        "aws", "on-demand", "us-east-1", "", "g5.xlarge") == newer  # fmt: skip


def test_no_record_means_no_dollars() -> None:
    assert price_at({}, 5.0) is None
    assert price_at({"prices": [[10.0, 1.0]]}, 5.0) is None
    assert cost_between({"prices": [[10.0, 1.0]]}, 0.0, 20.0) is None
    assert cost_between({"prices": [[0.0, 1.0], [1800.0, 3.0]]}, 0.0, 3600.0) == 2.0


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.01, 99)), min_size=1, max_size=8),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)
def test_cost_adds_up_over_any_split(prices: list[tuple[float, float]], a: float, b: float) -> None:
    node = {"prices": [[0.0, 1.0], *([t, p] for t, p in sorted(prices))]}
    low, high = sorted((a, b))
    middle = (low + high) / 2
    whole = cost_between(node, low, high)
    parts = (cost_between(node, low, middle), cost_between(node, middle, high))
    assert whole is not None
    assert parts[0] is not None
    assert parts[1] is not None
    assert abs(whole - sum(parts)) < 1e-6 * max(1.0, whole)  # type: ignore[arg-type]
