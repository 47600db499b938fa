"""AWS: today's prices and this account's quotas, read with the user's own credentials. Buys nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from sundog.clock import WALL, Clock
from sundog.clouds.aws import typed
from sundog.market.prices import Price
from sundog.market.shapes import Shape

# The price list is served from few regions, whatever region it is asked about.
PRICING_REGION = "us-east-1"
PRODUCT = "Linux/UNIX"
QUICK_S = 5
# vCPU quotas of EC2, by family as shapes name it and by market.
QUOTA_CODES = {
    ("Standard", "on-demand"): "L-1216C47A",
    ("Standard", "spot"): "L-34B43A08",
    ("G and VT", "on-demand"): "L-DB2E81BA",
    ("G and VT", "spot"): "L-3819A6DF",
    ("P", "on-demand"): "L-417A185B",
    ("P", "spot"): "L-7212CCBC",  # P4, P3 and P2
    ("P5", "spot"): "L-C4BD4855",
}

_LARGER = {("A100", 80): "80GB", ("V100", 32): "32GB"}
_NAMES = {"T4g": "T4G", "RTX-PRO-Server-6000": "RTX-PRO-6000"}  # as shapes name what EC2 calls so


def refresh_prices(
    region: str, shapes: Iterable[str], *, clock: Clock = WALL, ec2: Any = None, pricing: Any = None
) -> list[Price]:
    """Spot by zone id and on-demand of the region, for these shapes, as of now."""
    names = sorted(shapes)
    ec2 = ec2 or boto3.client("ec2", region_name=region)
    pricing = pricing or boto3.client("pricing", region_name=PRICING_REGION)
    try:
        return spot_prices(ec2, region, names, clock) + [
            p for name in names for p in on_demand_prices(pricing, region, name, clock)
        ]
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise typed(error) from error


def refresh_shapes(region: str, *, ec2: Any = None) -> list[Shape]:
    """The machines with NVIDIA GPUs that the region has. CapacityError's kinds."""
    ec2 = ec2 or boto3.client("ec2", region_name=region)
    try:
        pages = ec2.get_paginator("describe_instance_types").paginate(
            Filters=[{"Name": "bare-metal", "Values": ["false"]}]
        )
        rows = [row for page in pages for row in page["InstanceTypes"]]
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise typed(error) from error
    return [shape for row in rows if (shape := _shape(row)) is not None]


def _shape(row: dict[str, Any]) -> Shape | None:
    """None for a machine without whole GPUs of NVIDIA's."""
    gpus = list((row.get("GpuInfo") or {}).get("Gpus") or ())
    if len(gpus) != 1 or gpus[0].get("Manufacturer") != "NVIDIA" or not gpus[0].get("Count"):
        return None
    name, gib = row["InstanceType"], round(gpus[0].get("MemoryInfo", {}).get("SizeInMiB", 0) / 1024)
    kind = str(gpus[0]["Name"]).replace(" ", "-")
    if (kind, gib) in _LARGER:  # EC2 has one name for both sizes of a card
        kind = f"{kind}-{_LARGER[kind, gib]}"
    arch = row.get("ProcessorInfo", {}).get("SupportedArchitectures") or ["x86_64"]
    return Shape(
        "aws", name, name.partition(".")[0], int(row["VCpuInfo"]["DefaultVCpus"]),
        row["MemoryInfo"]["SizeInMiB"] / 1024, _NAMES.get(kind, kind), int(gpus[0]["Count"]), gib,
        "arm64" if "arm64" in arch else "amd64",
    )  # fmt: skip


def spot_prices(ec2: Any, region: str, shapes: list[str], clock: Clock) -> list[Price]:
    """The latest price of each shape and zone; zones by id, which is the same in every account."""
    ids = {
        z["ZoneName"]: z["ZoneId"] for z in ec2.describe_availability_zones()["AvailabilityZones"]
    }
    now = datetime.fromtimestamp(clock.now_s(), UTC)
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    token = ""
    while True:
        more = {"NextToken": token} if token else {}
        page = ec2.describe_spot_price_history(
            InstanceTypes=shapes, ProductDescriptions=[PRODUCT], StartTime=now, **more
        )
        for row in page["SpotPriceHistory"]:
            key = (row["AvailabilityZone"], row["InstanceType"])
            if key not in newest or row["Timestamp"] > newest[key]["Timestamp"]:
                newest[key] = row
        token = page.get("NextToken") or ""
        if not token:
            break
    # A spot price holds until it changes, so it is today's even if it was set days ago.
    return [
        Price("aws", "spot", region, ids.get(zone, zone), shape, float(row["SpotPrice"]),
              now.date(), "account")
        for (zone, shape), row in newest.items()
    ]  # fmt: skip


def on_demand_prices(pricing: Any, region: str, shape: str, clock: Clock) -> list[Price]:
    fields = {
        "regionCode": region, "instanceType": shape, "operatingSystem": "Linux",
        "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used",
    }  # fmt: skip
    answer = pricing.get_products(
        ServiceCode="AmazonEC2",
        Filters=[{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in fields.items()],
    )
    day = datetime.fromtimestamp(clock.now_s(), UTC).date()
    found = []
    for text in answer["PriceList"]:
        terms = json.loads(text).get("terms", {}).get("OnDemand", {})
        for term in terms.values():
            for dimension in term.get("priceDimensions", {}).values():
                usd = float(dimension.get("pricePerUnit", {}).get("USD", 0))
                if dimension.get("unit") == "Hrs" and usd > 0:
                    found.append(Price("aws", "on-demand", region, "", shape, usd, day, "account"))
    return found[:1]


def has_credentials() -> bool:
    """Whether this machine has credentials of an AWS account. Asks nobody whether they are good."""
    try:
        return boto3.Session().get_credentials() is not None
    except botocore.exceptions.BotoCoreError:
        return False  # a profile that names what is not there


def allowed_vcpus(region: str, *, quotas: Any = None) -> dict[tuple[str, str], int]:
    """(family, market) -> vCPUs that the account may run. For `plan_cluster(allowed=…)`."""
    # A plan waits for this: better without quotas than late.
    quick = botocore.config.Config(
        connect_timeout=QUICK_S, read_timeout=QUICK_S, retries={"total_max_attempts": 2}
    )
    quotas = quotas or boto3.client("service-quotas", region_name=region, config=quick)
    found = {}
    for key, code in QUOTA_CODES.items():
        try:
            answer = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise typed(error) from error
        found[key] = int(answer["Quota"]["Value"])
    return found
