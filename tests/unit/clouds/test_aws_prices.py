"""Prices and quotas from recorded answers of AWS, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber
from moto import mock_aws

from sundog.capacity.account import today
from sundog.capacity.plan import plan_cluster
from sundog.clock import ManualClock
from sundog.clouds import aws_prices
from sundog.clouds.aws_prices import QUOTA_CODES, allowed_vcpus, refresh_prices, refresh_shapes
from sundog.clouds.base import AuthRefused
from sundog.errors import Corrupt, FormatTooNew
from sundog.market.prices import Price, snapshot
from sundog.market.saved import book_with, save_prices
from sundog.market.shapes import catalogue

SPECS = Path(__file__).parents[3] / "cluster-configs" / "specs"
DAY = date(2026, 11, 20)
CLOCK = ManualClock(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp())


def client(service: str) -> tuple[Any, Stubber]:
    made = boto3.client(
        service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    return made, Stubber(made)


def row(zone: str, usd: str, day: int) -> dict[str, Any]:
    return {
        "AvailabilityZone": zone, "InstanceType": "g5.xlarge", "ProductDescription": "Linux/UNIX",
        "SpotPrice": usd, "Timestamp": datetime(2026, 11, day, tzinfo=UTC),
    }  # fmt: skip


def product(usd: str) -> str:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": usd}}
    return json.dumps({"terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}}})


@pytest.fixture
def account_of_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """EC2 as moto has it, with the machines that AWS really has."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield


def test_machines_with_gpus_are_read_as_the_package_knows_them(account_of_tests: None) -> None:
    found = refresh_shapes("us-east-1")
    known = {s.name: s for s in catalogue().of("aws")}
    same = [s for s in found if s.name in known]
    assert len(same) > 30
    for shape in same:
        # EC2 tells the memory that is usable, the package the card's.
        assert (
            replace(shape, accelerator_gib=known[shape.name].accelerator_gib) == known[shape.name]
        )
        assert 0.9 < shape.accelerator_gib / known[shape.name].accelerator_gib <= 1
    assert {"p4de.24xlarge", "p4d.24xlarge", "g5g.xlarge"} <= {s.name for s in same}
    new = {s.name: s for s in found if s.name not in known}
    assert new["p5e.48xlarge"].accelerator == "H200"
    assert not [name for name in new if "metal" in name or name.startswith("g4ad")]


def test_machines_that_are_newer_than_the_package_can_be_planned_with(
    account_of_tests: None, tmp_path: Path
) -> None:
    prices = [
        Price("aws", "spot", "us-east-1", "use1-az1", "p5e.48xlarge", 9.0, DAY, "account"),
        Price("aws", "on-demand", "us-east-1", "", "p5e.48xlarge", 40.0, DAY, "account"),
    ]
    new = [s for s in refresh_shapes("us-east-1") if catalogue().shape("aws", s.name) is None]
    save_prices(prices, tmp_path / "p.json", new)
    book = book_with(tmp_path / "p.json")
    assert book.rejected == snapshot().with_more([]).rejected
    # Not over EFA: how many cards of it a new machine has is not read.
    spec = (
        (SPECS / "aws-train.yaml").read_text().replace("H100", "H200").replace("network: efa", "")
    )
    (tmp_path / "spec.yaml").write_text(spec)
    plan = plan_cluster(tmp_path / "spec.yaml", book=book)
    assert any(r.shape == "p5e.48xlarge" for pool in plan.pools for r in pool.rungs)
    without = plan_cluster(tmp_path / "spec.yaml")
    assert not any(r.shape == "p5e.48xlarge" for pool in without.pools for r in pool.rungs)


def test_new_machines_that_fit_are_priced_too(
    account_of_tests: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[set[str]] = []
    monkeypatch.setattr(
        aws_prices, "refresh_prices", lambda region, shapes, clock: asked.append(shapes) or []
    )
    (tmp_path / "spec.yaml").write_text(
        (SPECS / "aws-train.yaml").read_text().replace("H100", "H200")
    )
    found = today(tmp_path / "spec.yaml")
    assert "p5e.48xlarge" in {s.name for s in found.shapes}
    assert "p5e.48xlarge" in asked[0]
    assert "p6-b300.48xlarge" not in asked[0], "fits no pool"


def test_prices_are_had_where_machines_may_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(region: str) -> None:
        raise AuthRefused("not allowed: ec2:DescribeInstanceTypes", "ask for it")

    asked: list[set[str]] = []
    monkeypatch.setattr(aws_prices, "refresh_shapes", refused)
    monkeypatch.setattr(
        aws_prices, "refresh_prices", lambda region, shapes, clock: asked.append(shapes) or []
    )
    found = today(SPECS / "aws-train.yaml")
    assert (found.shapes, found.why_no_shapes) == ([], "not allowed: ec2:DescribeInstanceTypes")
    assert "g5.xlarge" in asked[0]


def test_the_latest_spot_price_of_each_zone_id_and_the_regions_on_demand_price() -> None:
    ec2, recorded = client("ec2")
    zones = [{"ZoneName": "us-east-1a", "ZoneId": "use1-az6"},
             {"ZoneName": "us-east-1b", "ZoneId": "use1-az1"}]  # fmt: skip
    recorded.add_response("describe_availability_zones", {"AvailabilityZones": zones})
    asked = {
        "InstanceTypes": ["g5.xlarge"],
        "ProductDescriptions": ["Linux/UNIX"],
        "StartTime": ANY,
    }
    recorded.add_response(
        "describe_spot_price_history",
        {"SpotPriceHistory": [row("us-east-1a", "0.40", 1)], "NextToken": "more"}, asked,
    )  # fmt: skip
    recorded.add_response(
        "describe_spot_price_history",
        {"SpotPriceHistory": [row("us-east-1a", "0.45", 9), row("us-east-1b", "0.50", 2)]},
        {**asked, "NextToken": "more"},
    )
    pricing, listed = client("pricing")
    listed.add_response("get_products", {"PriceList": [product("0.00"), product("1.006")]})
    with recorded, listed:
        prices = refresh_prices("us-east-1", ["g5.xlarge"], clock=CLOCK, ec2=ec2, pricing=pricing)
    assert [(p.market, p.zone, p.usd_hour) for p in prices] == [
        ("spot", "use1-az6", 0.45), ("spot", "use1-az1", 0.50), ("on-demand", "", 1.006)
    ]  # fmt: skip
    assert {p.day for p in prices} == {date(2026, 11, 20)}
    recorded.assert_no_pending_responses()


def test_quotas_by_family_and_market() -> None:
    quotas, recorded = client("service-quotas")
    for number, code in enumerate(QUOTA_CODES.values()):
        recorded.add_response(
            "get_service_quota", {"Quota": {"Value": float(number)}},
            {"ServiceCode": "ec2", "QuotaCode": code},
        )  # fmt: skip
    with recorded:
        found = allowed_vcpus("us-east-1", quotas=quotas)
    assert found[("Standard", "on-demand")] == 0
    assert set(found) == set(QUOTA_CODES)


def test_credentials_that_may_not_are_said_so() -> None:
    quotas, recorded = client("service-quotas")
    recorded.add_client_error("get_service_quota", "UnauthorizedOperation", "no")
    with recorded, pytest.raises(AuthRefused):
        allowed_vcpus("us-east-1", quotas=quotas)


def test_saved_prices_lie_over_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    test_prices = [
        p
        for p in book_over(path)
        if (p.region, p.zone, p.shape) == ("us-east-1", "use1-az6", "g5.xlarge")
    ]
    assert [(p.usd_hour, p.source) for p in test_prices if p.market == "spot"] == [
        (0.45, "account")
    ]


def book_over(path: Path) -> list[Any]:
    from sundog.market.prices import Price

    fresh = Price("aws", "spot", "us-east-1", "use1-az6", "g5.xlarge", 0.45, date(2026, 11, 20))
    save_prices([fresh], path)
    return book_with(path).rows()


def test_a_price_file_of_a_later_format_or_none_at_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"format": 2, "prices": []}')
    with pytest.raises(FormatTooNew):
        book_with(path)
    path.write_text("[]")
    with pytest.raises(Corrupt):
        book_with(path)
