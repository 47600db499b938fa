"""What EC2's refusals mean, and what its launches carry from the start."""

from __future__ import annotations

import botocore.exceptions

from sundog.clouds.aws import launch_request, typed
from sundog.clouds.base import Order, Rejected


def test_a_missing_placement_group_is_said_with_the_command_that_makes_it() -> None:
    """It is missing for every rung alike, so going down the ladder would only cost calls."""
    error = typed(
        botocore.exceptions.ClientError(
            {"Error": {"Code": "InvalidPlacementGroup.Unknown", "Message": "The Placement Group "
                       "'train' is unknown."}},
            "RunInstances",
        )
    )  # fmt: skip
    assert type(error) is Rejected
    assert "'train' is unknown" in error.message
    assert "aws ec2 create-placement-group --strategy cluster" in error.fix


def test_tags_from_birth_need_no_permission_beyond_instances_and_volumes() -> None:
    tags = {"ray-cluster-name": "c", "sundog:pool": "gpu"}
    request = launch_request(Order("spot", "z1", "g5.xlarge", 1, "tok", tags), "subnet-1")
    kinds = {s["ResourceType"]: s["Tags"] for s in request["TagSpecifications"]}
    assert set(kinds) == {"instance", "volume"}
    assert {"Key": "sundog:token", "Value": "tok"} in kinds["volume"]
    assert {"Key": "sundog:pool", "Value": "gpu"} in kinds["instance"]
