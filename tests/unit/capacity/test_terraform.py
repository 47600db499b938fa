"""The Terraform parses, opens nothing to the world, and its roles hold to the cluster's tag."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import hcl2
import pytest

FOLDER = Path(__file__).parents[3] / "cluster-configs" / "terraform" / "aws"


def _clean(value: Any) -> Any:
    """hcl2 keeps the quotes of strings and keys; drop them."""
    if isinstance(value, dict):
        return {_clean(k): _clean(v) for k, v in value.items() if not str(k).startswith("__")}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return value.strip('"') if isinstance(value, str) else value


def blocks(name: str) -> dict[str, Any]:
    return dict(_clean(hcl2.load(io.StringIO((FOLDER / name).read_text()))))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.tf")), ids=lambda p: p.name)
def test_it_parses(path: Path) -> None:
    assert blocks(path.name)


def resources(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in FOLDER.glob("*.tf"):
        for block in blocks(path.name).get("resource", []):
            found |= block.get(kind, {})
    return found


def test_what_must_exist_before_is_there() -> None:
    for kind in ("aws_s3_bucket", "aws_security_group", "aws_budgets_budget", "aws_iam_role"):
        assert resources(kind), kind
    assert set(resources("aws_iam_instance_profile")) == {"head", "node"}
    blocked = resources("aws_s3_bucket_public_access_block")["root"]
    assert all(v is True for k, v in blocked.items() if k != "bucket")


def test_two_clusters_in_an_account_do_not_share_a_name() -> None:
    for kind in ("aws_iam_role", "aws_iam_instance_profile", "aws_iam_policy"):
        for name, made in resources(kind).items():
            assert "${var.cluster}" in made["name"], f"{kind}.{name}"


def test_efa_traffic_may_leave_for_the_groups_own_nodes() -> None:
    rules = resources("aws_vpc_security_group_egress_rule").values()
    own = [r for r in rules if "referenced_security_group_id" in r]
    assert [r["ip_protocol"] for r in own] == ["-1"]


def test_no_way_in_from_the_internet() -> None:
    for name, rule in resources("aws_vpc_security_group_ingress_rule").items():
        assert "0.0.0.0/0" not in str(rule), name


def statements(document: str) -> dict[str, Any]:
    for block in blocks("roles.tf")["data"]:
        found = block.get("aws_iam_policy_document", {}).get(document)
        if found:
            return {s["sid"]: s for s in found["statement"]}
    raise AssertionError(document)


def test_the_head_changes_only_instances_with_the_clusters_tag() -> None:
    head = statements("head")
    for sid in ("TouchOnlyTheClusters", "LaunchTagged"):
        [condition] = head[sid]["condition"]
        assert condition["variable"].endswith("/ray-cluster-name")
    for sid, statement in head.items():
        if statement["resources"] == ["*"]:
            assert all(a.startswith("ec2:Describe") for a in statement["actions"]), sid
        assert not any("*" in a for a in statement["actions"]), sid
    assert not any("ec2:" in a for s in statements("root").values() for a in s["actions"])


def test_the_head_may_do_what_the_provider_calls() -> None:
    may = {a for s in statements("head").values() for a in s["actions"]}
    source = (Path(__file__).parents[3] / "platform" / "sundog" / "clouds" / "aws.py").read_text()
    calls = {
        "run_instances": "ec2:RunInstances", "terminate_instances": "ec2:TerminateInstances",
        "create_tags": "ec2:CreateTags", "describe_subnets": "ec2:DescribeSubnets",
        "describe_instances": "ec2:DescribeInstances",
    }  # fmt: skip
    for call, permission in calls.items():
        assert call in source
        assert permission in may


def test_who_joins_may_enter_this_cluster_and_change_nothing() -> None:
    join = statements("join")
    assert {a for s in join.values() for a in s["actions"]} == {
        "ec2:DescribeInstances", "ec2-instance-connect:SendSSHPublicKey", "ssm:StartSession"
    }  # fmt: skip
    [condition] = join["ConnectToTheClusters"]["condition"]
    assert condition["variable"] == "aws:ResourceTag/ray-cluster-name"


def test_who_runs_up_may_do_what_bootstrap_calls() -> None:
    up = statements("up")
    may = {a for s in up.values() for a in s["actions"]}
    clouds = Path(__file__).parents[3] / "platform" / "sundog" / "clouds"
    called = set(re.findall(r"\bec2\.([a-z_]+)\(", (clouds / "aws_network.py").read_text()))
    assert len(called) > 6
    wanted = {"ec2:" + "".join(w.title() for w in call.split("_")) for call in called}
    head = {a for s in statements("head").values() for a in s["actions"]}
    assert wanted - may - head == set()
    assert {"ec2:DescribeKeyPairs", "ec2:CreateKeyPair", "ssm:StartSession"} <= may, "Ray and SSH"
    for sid, statement in up.items():
        assert not any("*" in a for a in statement["actions"]), sid
        if sid.startswith("SetTheRules"):
            [condition] = statement["condition"]
            assert condition["variable"] == "ec2:ResourceTag/sundog:cluster"
