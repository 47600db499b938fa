"""What a cluster's network needs on AWS: placement groups, EFA on every card, traffic among its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from sundog.clouds.aws import launch_request
from sundog.clouds.aws_efa import EFA_CARDS, efa_interfaces
from sundog.clouds.aws_network import ensure_placement_groups, ensure_security_group
from sundog.clouds.base import Order
from sundog.market.shapes import catalogue

REGION = "us-east-1"


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("ec2", region_name=REGION)


def test_placement_groups_that_are_missing_are_made_with_the_clusters_tags() -> None:
    client = boto3.client(
        "ec2", region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
    )
    recorded = Stubber(client)
    there = {"PlacementGroups": [{"GroupName": "train-a", "Strategy": "cluster"}]}
    tags = [{"Key": k, "Value": "train"} for k in ("sundog:cluster", "ray-cluster-name")]
    recorded.add_response("describe_placement_groups", there)
    recorded.add_response(
        "create_placement_group", {},
        {"GroupName": "train-b", "Strategy": "cluster",
         "TagSpecifications": [{"ResourceType": "placement-group", "Tags": tags}]},
    )  # fmt: skip
    # And a third one that somebody else makes meanwhile.
    recorded.add_client_error("create_placement_group", "InvalidPlacementGroup.Duplicate")
    with recorded:
        ensure_placement_groups(
            REGION, None, "train", ["train-c", "train-b", "train-a"], ec2=client
        )
    recorded.assert_no_pending_responses()


def test_the_group_lets_its_own_nodes_talk_both_ways(ec2: Any) -> None:
    for _ in range(2):
        group = ensure_security_group(REGION, None, "train", [], [])
    [found] = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    for rules in (found["IpPermissions"], found["IpPermissionsEgress"]):
        own = [p for p in rules if p["IpProtocol"] == "-1" and p["UserIdGroupPairs"]]
        assert [p["UserIdGroupPairs"][0]["GroupId"] for p in own] == [group]
    assert any(p["IpRanges"] for p in found["IpPermissionsEgress"]), "the way out stays open"


@pytest.mark.parametrize(("shape", "cards"), [("p5.48xlarge", 32), ("g5.8xlarge", 1)])
def test_an_efa_launch_has_an_interface_on_each_card(shape: str, cards: int) -> None:
    order = Order(
        "spot", "use1-az1", shape, 1, "t", {}, {"SecurityGroupIds": ["sg-1"]}, efa=True
    )  # fmt: skip
    request = launch_request(order, "subnet-1")
    found = request["NetworkInterfaces"]
    assert [i["NetworkCardIndex"] for i in found] == list(range(cards))
    assert [i["InterfaceType"] for i in found] == ["efa"] + ["efa-only"] * (cards - 1)
    assert [i["DeviceIndex"] for i in found] == [0] + [1] * (cards - 1)
    assert all(i["Groups"] == ["sg-1"] and i["SubnetId"] == "subnet-1" for i in found)
    assert "SecurityGroupIds" not in request
    assert "SubnetId" not in request
    assert found == efa_interfaces(shape, "subnet-1", ["sg-1"])


def test_every_shape_with_efa_is_one_that_is_sold() -> None:
    assert [s for s in EFA_CARDS if catalogue().shape("aws", s) is None] == []
