"""Region names: misspellings are found, and what is merely new is not called one."""

from __future__ import annotations

import pytest

from sundog.market.prices import snapshot
from sundog.market.regions import NAMED, aws_zone_code, misspelt


@pytest.mark.parametrize(
    ("cloud", "region", "near"),
    [
        ("aws", "us-est-1", "us-east-1"),
        ("aws", "eu-centrl-1", "eu-central-1"),
        ("gcp", "us-centrl1", "us-central1"),
        ("azure", "estus", "eastus"),
    ],
)
def test_a_misspelt_region_has_a_near_one(cloud: str, region: str, near: str) -> None:
    known, found = misspelt(cloud, region, snapshot().regions(cloud))
    assert not known
    assert near in found


@pytest.mark.parametrize(("cloud", "region"), [("aws", "us-east-7"), ("azure", "mars")])
def test_a_region_nobody_here_knows_is_not_called_a_mistake(cloud: str, region: str) -> None:
    assert misspelt(cloud, region, ()) == (False, [])


def test_every_zone_of_the_snapshot_has_its_regions_code() -> None:
    book = snapshot()
    for region in book.regions("aws"):
        assert region in NAMED["aws"]
        assert all(z.startswith(aws_zone_code(region) + "-az") for z in book.zones("aws", region))
    assert [aws_zone_code(r) for r in ("ap-northeast-1", "us-gov-west-1", "eu-south-2")] == [
        "apne1", "usgw1", "eus2"
    ]  # fmt: skip
