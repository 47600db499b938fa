"""Regions and zones of a spec: that they exist as far as anybody can tell without asking a cloud."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sundog.market.prices import PriceBook
from sundog.market.regions import aws_zone_code, misspelt
from sundog.spec.load import Location

if TYPE_CHECKING:
    from sundog.capacity.check import Source

_AWS_ZONE_NAME = re.compile(r"[a-z]{2}(-[a-z]+)+-\d[a-z]")


def region_known(source: Source, cloud: str, book: PriceBook) -> bool:
    """SpecError for a region that is surely misspelt; False for one that nobody here knows."""
    spec = source.spec.cloud
    known, near = misspelt(cloud, spec.region, book.regions(cloud))
    if near:
        at: Location = ("cloud", spec.name, "location" if spec.azure else "region")
        raise source.fault(at, f"no region {spec.region!r} on {cloud}",
                           f"did you mean {' or '.join(near)}?")  # fmt: skip
    return known


def zones(source: Source, cloud: str, book: PriceBook) -> list[str]:
    spec = source.spec
    if spec.cloud.gcp:
        return _gcp_zones(source)
    if spec.cloud.aws is None:
        return [""]
    region, given = spec.cloud.aws.region, spec.cloud.aws.zones
    at: Location = ("cloud", "aws", "zones")
    code = aws_zone_code(region)
    ask = f"aws ec2 describe-availability-zones --region {region} --query 'AvailabilityZones[].ZoneId'"
    if given == "all":
        found = book.zones("aws", region)
        if not found:
            raise source.fault(
                at, f"the zones of {region!r} are not in the price snapshot",
                f"name them: zones: [{code}-az1, {code}-az2]; the ids: {ask}",
            )  # fmt: skip
        return found
    for zone in given:
        if _AWS_ZONE_NAME.fullmatch(zone):
            # Which zone a name means differs between accounts, and prices are by id.
            raise source.fault(
                at, f"{zone!r} is a zone's name, which means another zone in another account",
                f"write its id, such as {code}-az1: {ask}",
            )  # fmt: skip
        if not re.fullmatch(rf"{code}-az\d", zone):
            raise source.fault(at, f"{zone!r} is not a zone of {region}", f"such as {code}-az1")
    return list(given)


def check_names(source: Source) -> None:
    """Names that the target's own labels would change, so that nobody would find their nodes again."""
    spec = source.spec
    if "head" in spec.pools:
        raise source.fault(
            ("pools", "head"), "this is what the head's own node type is called", "rename the pool"
        )
    if spec.cloud.gcp is None and spec.cloud.kuberay is None:
        return
    bad = "." if spec.cloud.gcp else "._"
    named: list[tuple[Location, str]] = [(("cluster",), spec.cluster)]
    named += [(("pools", name), name) for name in spec.pools]
    for at, name in named:
        if any(c in name for c in bad):
            raise source.fault(
                at, f"{name!r} cannot be a label on {spec.cloud.name}",
                f"such as {''.join('-' if c in bad else c for c in name)}",
            )  # fmt: skip


def _gcp_zones(source: Source) -> list[str]:
    gcp = source.spec.cloud.gcp
    assert gcp is not None
    found = [gcp.zone, *gcp.more_zones]
    for zone in found:
        if not re.fullmatch(rf"{re.escape(gcp.region)}-[a-z]", zone):
            raise source.fault(
                ("cloud", "gcp", "zone" if zone == gcp.zone else "more_zones"),
                f"{zone!r} is not a zone of {gcp.region}", f"such as {gcp.region}-a",
            )  # fmt: skip
    return list(dict.fromkeys(found))
