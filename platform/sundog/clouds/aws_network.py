"""AWS: the cluster's security group, with exactly the ports the spec says, and placement groups.

Ray's own bootstrap would open SSH to the whole internet when it makes the group; so it is made here
first, and Ray then finds it with its rules.
"""

from __future__ import annotations

from typing import Any

import boto3
import botocore.exceptions

from sundog.clouds.aws import typed

_INSIDE = "traffic between the cluster's own nodes"


def ensure_security_group(
    region: str, endpoint: str | None, cluster: str, subnets: list[str], open_to: list[str]
) -> str:
    """The id of the cluster's group: everything among its nodes, SSH from `open_to`, nothing else."""
    try:
        ec2 = boto3.session.Session(region_name=region).client("ec2", endpoint_url=endpoint)
        vpc = _vpc(ec2, subnets)
        group = _find_or_make(ec2, cluster, vpc)
        wanted = _rules(group["GroupId"], open_to)
        _settle(ec2, group, wanted)
        _inside_out(ec2, group)
        return str(group["GroupId"])
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise typed(error) from error


def ensure_placement_groups(
    region: str, endpoint: str | None, cluster: str, names: list[str], *, ec2: Any = None
) -> None:
    """Cluster placement groups of these names: EC2 refuses a launch into one that is not there.

    They stay when the cluster goes: an empty group costs nothing, and the next `up` uses it again.
    """
    try:
        session = boto3.session.Session(region_name=region)
        ec2 = ec2 or session.client("ec2", endpoint_url=endpoint)
        have = {g["GroupName"] for g in ec2.describe_placement_groups()["PlacementGroups"]}
        tags = [
            {"Key": "sundog:cluster", "Value": cluster}, {"Key": "ray-cluster-name", "Value": cluster}
        ]  # fmt: skip
        for name in sorted(set(names) - have):
            _make_placement_group(ec2, name, tags)
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise typed(error) from error


def _make_placement_group(ec2: Any, name: str, tags: list[dict[str, str]]) -> None:
    try:
        ec2.create_placement_group(
            GroupName=name, Strategy="cluster",
            TagSpecifications=[{"ResourceType": "placement-group", "Tags": tags}],
        )  # fmt: skip
    except botocore.exceptions.ClientError as error:
        # Another `ray up` was a moment faster.
        if error.response.get("Error", {}).get("Code") != "InvalidPlacementGroup.Duplicate":
            raise


def _vpc(ec2: Any, subnets: list[str]) -> str:
    if subnets:
        return str(ec2.describe_subnets(SubnetIds=subnets[:1])["Subnets"][0]["VpcId"])
    found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not found:
        found = ec2.describe_vpcs()["Vpcs"]
    return str(found[0]["VpcId"])


def _find_or_make(ec2: Any, cluster: str, vpc: str) -> dict[str, Any]:
    name = f"sundog-{cluster}"
    filters = [
        {"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}
    ]  # fmt: skip
    found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    if not found:
        tags = [
            {"Key": "sundog:cluster", "Value": cluster}, {"Key": "ray-cluster-name", "Value": cluster}
        ]  # fmt: skip
        ec2.create_security_group(
            GroupName=name, VpcId=vpc, Description=f"Nodes of the Sundog cluster {cluster}",
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
        )  # fmt: skip
        found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    return dict(found[0])


def _rules(group: str, open_to: list[str]) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = [
        {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group, "Description": _INSIDE}]}
    ]
    if open_to:
        four = [{"CidrIp": c, "Description": "SSH"} for c in open_to if ":" not in c]
        six = [{"CidrIpv6": c, "Description": "SSH"} for c in open_to if ":" in c]
        ssh: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
        rules.append(
            ssh | ({"IpRanges": four} if four else {}) | ({"Ipv6Ranges": six} if six else {})
        )
    return rules


def _settle(ec2: Any, group: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
    """Bring the group to `wanted`. Ports that the spec no longer names are closed."""
    have = _flat(group.get("IpPermissions", []))
    want = _flat(wanted)
    for rule in want - have:
        ec2.authorize_security_group_ingress(
            GroupId=group["GroupId"], IpPermissions=[_permission(rule)]
        )
    for rule in have - want:
        ec2.revoke_security_group_ingress(
            GroupId=group["GroupId"], IpPermissions=[_permission(rule)]
        )


def _inside_out(ec2: Any, group: dict[str, Any]) -> None:
    """EFA traffic leaves only by a rule that names the group itself: 0.0.0.0/0 is about IP."""
    own = ("-1", -1, -1, "group", str(group["GroupId"]))
    if own not in _flat(group.get("IpPermissionsEgress", [])):
        ec2.authorize_security_group_egress(
            GroupId=group["GroupId"], IpPermissions=[_permission(own)]
        )


def _flat(rules: list[dict[str, Any]]) -> set[tuple[str, int, int, str, str]]:
    out = set()
    for r in rules:
        key = (str(r["IpProtocol"]), int(r.get("FromPort") or -1), int(r.get("ToPort") or -1))
        out |= {(*key, "group", p["GroupId"]) for p in r.get("UserIdGroupPairs", [])}
        out |= {(*key, "ipv4", p["CidrIp"]) for p in r.get("IpRanges", [])}
        out |= {(*key, "ipv6", p["CidrIpv6"]) for p in r.get("Ipv6Ranges", [])}
    return out


def _permission(rule: tuple[str, int, int, str, str]) -> dict[str, Any]:
    protocol, low, high, kind, value = rule
    out: dict[str, Any] = {"IpProtocol": protocol}
    if protocol != "-1":
        out |= {"FromPort": low, "ToPort": high}
    if kind == "group":
        return out | {"UserIdGroupPairs": [{"GroupId": value}]}
    return out | (
        {"IpRanges": [{"CidrIp": value}]}
        if kind == "ipv4"
        else {"Ipv6Ranges": [{"CidrIpv6": value}]}
    )
