"""AWS: EC2 launches, listings and terminations through boto3, with typed refusals.

Never retries by itself and never stops an instance: what goes is terminated.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from sundog.clock import WALL
from sundog.clouds.aws_efa import efa_interfaces
from sundog.clouds.base import (
    AuthRefused,
    CapacityRefused,
    Machine,
    Order,
    PriceRefused,
    QuotaRefused,
    Rejected,
    Transient,
    Unsupported,
)  # fmt: skip
from sundog.errors import CapacityError

CLUSTER_TAG = "ray-cluster-name"
TOKEN_TAG = "sundog:token"
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30

_CODES: dict[str, type[CapacityError]] = {
    "InsufficientInstanceCapacity": CapacityRefused,
    "InsufficientHostCapacity": CapacityRefused,
    "InsufficientReservedInstanceCapacity": CapacityRefused,
    "InsufficientCapacity": CapacityRefused,
    "InsufficientFreeAddressesInSubnet": CapacityRefused,
    "SpotMaxPriceTooLow": PriceRefused,
    "MaxSpotInstanceCountExceeded": QuotaRefused,
    "VcpuLimitExceeded": QuotaRefused,
    "InstanceLimitExceeded": QuotaRefused,
    "Unsupported": Unsupported,
    "UnsupportedOperation": Unsupported,
    "InvalidInstanceType": Unsupported,
    "UnauthorizedOperation": AuthRefused,
    "AuthFailure": AuthRefused,
    "InvalidClientTokenId": AuthRefused,
    "ExpiredToken": AuthRefused,
    "OptInRequired": AuthRefused,
    "RequestLimitExceeded": Transient,
    "Throttling": Transient,
    "ThrottlingException": Transient,
    "InternalError": Transient,
    "InternalFailure": Transient,
    "Unavailable": Transient,
    "ServiceUnavailable": Transient,
    "RequestTimeout": Transient,
}
_FIX: dict[type[CapacityError], str] = {
    AuthRefused: "docs/clusters.md lists every permission that the head's role needs",
    QuotaRefused: "ask for a higher quota; `sundog cluster plan` says which",
    Rejected: "check image, subnets, key and security group in the cluster file",
}
# What one code alone can be cured by. A placement group is missing for every rung alike.
_CODE_FIX = {
    "InvalidPlacementGroup.Unknown": "make the group that network.placement_group of the spec names: "
    "aws ec2 create-placement-group --strategy cluster --group-name NAME",
}


def typed(error: Exception) -> CapacityError:
    """The kind of refusal behind a botocore exception."""
    if isinstance(error, botocore.exceptions.ClientError):
        body = error.response.get("Error", {})
        code, message = str(body.get("Code", "")), str(body.get("Message", error))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        kind = _CODES.get(code) or (Transient if status >= 500 else Rejected)
        return kind(f"{code}: {message}", _CODE_FIX.get(code) or _FIX.get(kind, ""))
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return AuthRefused(str(error), "run `aws configure`, or set AWS_PROFILE")
    fix = "check the network, the region and AWS_ENDPOINT_URL"
    return Transient(f"{type(error).__name__}: {error}", fix)


class AwsCloud:
    """`endpoint` overrides the EC2 address, for a test cloud or a private endpoint."""

    def __init__(self, region: str, endpoint: str | None = None) -> None:
        self.region = region
        config = botocore.config.Config(
            retries={"total_max_attempts": 1}, connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S, max_pool_connections=16,
        )  # fmt: skip
        # A client is thread-safe; making one is not, and a session of our own makes it so.
        session = boto3.session.Session(region_name=region)
        self._ec2 = session.client("ec2", endpoint_url=endpoint, config=config)
        self._lock = threading.Lock()
        self._subnets: dict[str, list[tuple[str, str, str]]] = {}

    def launch(self, order: Order) -> list[Machine]:
        subnet = self._subnet(order)
        request = launch_request(order, subnet)
        try:
            answer = self._ec2.run_instances(**request)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise typed(error) from error
        return [_machine(i, order.zone, order.tags) for i in answer["Instances"]]

    def machines(self, cluster: str) -> list[Machine]:
        return self._list([{"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster]}])

    def bought(self, token: str) -> list[Machine]:
        return self._list([{"Name": f"tag:{TOKEN_TAG}", "Values": [token]}])

    def _list(self, filters: list[dict[str, Any]]) -> list[Machine]:
        live = {"Name": "instance-state-name", "Values": ["pending", "running"]}
        try:
            pages = self._ec2.get_paginator("describe_instances").paginate(Filters=[live, *filters])
            return [
                _machine(i) for page in pages for r in page["Reservations"] for i in r["Instances"]
            ]
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise typed(error) from error

    def terminate(self, ids: Sequence[str]) -> None:
        try:
            self._ec2.terminate_instances(InstanceIds=list(ids))
        except botocore.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") != "InvalidInstanceID.NotFound":
                raise typed(error) from error
            if len(ids) > 1:  # one unknown id fails the whole call, so ask one by one
                for each in ids:
                    self.terminate([each])
        except botocore.exceptions.BotoCoreError as error:
            raise typed(error) from error

    def tag(self, ids: Sequence[str], tags: Mapping[str, str]) -> None:
        pairs = [{"Key": k, "Value": v} for k, v in tags.items()]
        try:
            self._ec2.create_tags(Resources=list(ids), Tags=pairs)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise typed(error) from error

    def zones(self, config: Mapping[str, Any]) -> list[str]:
        return [zone_id for _, _, zone_id in self._reach(config)]

    def spot_prices(self, shapes: Sequence[str]) -> Mapping[tuple[str, str], float]:
        from sundog.clouds.aws_prices import spot_prices

        try:
            found = spot_prices(self._ec2, self.region, sorted(shapes), WALL)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise typed(error) from error
        return {(p.zone, p.shape): p.usd_hour for p in found}

    def _subnet(self, order: Order) -> str:
        for subnet, zone, zone_id in self._reach(order.config):
            if order.zone in (zone, zone_id):
                return subnet
        raise Unsupported(f"no subnet of this cluster lies in {order.zone}")

    def _reach(self, config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        """(subnet, zone name, zone id) of each subnet of a launch configuration. Asked once."""
        ids = tuple(
            config.get("SubnetIds") or ([config["SubnetId"]] if "SubnetId" in config else [])
        )
        key = ",".join(ids)
        with self._lock:
            if key in self._subnets:
                return self._subnets[key]
        try:
            found = self._ec2.describe_subnets(SubnetIds=list(ids))["Subnets"]
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise typed(error) from error
        order = {s: i for i, s in enumerate(ids)}
        reach = [
            (
                s["SubnetId"],
                s["AvailabilityZone"],
                s.get("AvailabilityZoneId", s["AvailabilityZone"]),
            )
            for s in sorted(found, key=lambda s: order.get(s["SubnetId"], 0))
        ]
        with self._lock:
            self._subnets[key] = reach
        return reach


def launch_request(order: Order, subnet: str) -> dict[str, Any]:
    """The body of RunInstances: the file's configuration, the offer on top, tags from creation."""
    request = {k: v for k, v in order.config.items() if k not in ("SubnetIds", "SubnetId")}
    request.update(
        InstanceType=order.shape, MinCount=1, MaxCount=order.count, ClientToken=order.token,
        SubnetId=subnet, TagSpecifications=_tag_specs(order),
    )  # fmt: skip
    request.pop("InstanceMarketOptions", None)
    if order.market == "spot":
        options: dict[str, Any] = {
            "SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"
        }  # fmt: skip
        if order.max_price_usd_hour is not None:
            options["MaxPrice"] = f"{order.max_price_usd_hour:.4f}"
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    if order.efa:
        request["NetworkInterfaces"] = efa_interfaces(
            order.shape, request.pop("SubnetId"), request.pop("SecurityGroupIds", [])
        )
    return request


def _tag_specs(order: Order) -> list[dict[str, Any]]:
    """Our tags over the file's, on the instance and its volumes.

    Not on the spot request: it lives and ends within the call, and its tag would ask for one more
    permission in the head's role.
    """
    merged: dict[str, dict[str, str]] = {"instance": {}, "volume": {}}
    for spec in order.config.get("TagSpecifications") or ():
        merged.setdefault(spec["ResourceType"], {}).update(
            {t["Key"]: t["Value"] for t in spec["Tags"]}
        )
    merged["instance"].update(order.tags)
    cluster = order.tags.get(CLUSTER_TAG)
    for kind in list(merged):
        merged[kind][TOKEN_TAG] = order.token
        if cluster:
            merged[kind][CLUSTER_TAG] = cluster
    return [
        {"ResourceType": kind, "Tags": [{"Key": k, "Value": v} for k, v in sorted(tags.items())]}
        for kind, tags in merged.items()
    ]


def _machine(
    row: Mapping[str, Any], zone: str | None = None, tags: Mapping[str, str] | None = None
) -> Machine:
    at = row.get("LaunchTime")
    known = {t["Key"]: t["Value"] for t in row.get("Tags") or ()} or dict(tags or {})
    return Machine(
        id=row["InstanceId"],
        state=row["State"]["Name"],
        market="spot" if row.get("InstanceLifecycle") == "spot" else known.get(
            "sundog:market", "on-demand"
        ),
        zone=known.get("sundog:zone") or zone or row["Placement"]["AvailabilityZone"],
        shape=row["InstanceType"],
        launched_s=at.timestamp() if at else 0.0,
        tags=known,
        internal_ip=row.get("PrivateIpAddress"),
        external_ip=row.get("PublicIpAddress"),
    )  # fmt: skip
