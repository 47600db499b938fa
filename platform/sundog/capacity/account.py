"""What the user's own cloud account says: its quotas and today's prices. Asks, never buys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sundog.capacity.check import Bought, check, read_spec
from sundog.capacity.cloud_of import aws_profile
from sundog.capacity.records import WINDOW_S, spot_records
from sundog.clock import WALL, Clock
from sundog.errors import CapacityError, SpecError, SundogError
from sundog.ledger import RootLedger
from sundog.market.offers import Record
from sundog.market.prices import Price, PriceBook
from sundog.market.shapes import Catalogue, Shape, catalogue
from sundog.spec.cluster import AwsCloud, ClusterSpec

# Where a person looks them up and asks for more.
WHERE = {
    "gcp": "; look under IAM & Admin → Quotas, or gcloud compute regions describe REGION",
    "azure": "; look under Quotas → Compute, or az vm list-usage --location LOCATION "
    "(spot has one of its own for all families: lowPriorityCores)",
}


@dataclass(frozen=True)
class Allowed:
    """What the account may run, by (quota, market) as `Shape.quota` names them; None with the reason
    where nobody said."""

    found: dict[tuple[str, str], int] | None
    why_not: str = ""


def allowed(spec: ClusterSpec) -> Allowed:
    """The account's quotas in the spec's region. Never raises: a plan without them is still one."""
    cloud = spec.cloud
    try:
        if cloud.aws is not None:
            return _of_aws(cloud.aws)
        if cloud.gcp is not None:
            from sundog.clouds import gcp_quotas

            if not gcp_quotas.has_credentials():
                return Allowed(None, f"no GCP credentials here{WHERE['gcp']}")
            return Allowed(gcp_quotas.allowed(cloud.gcp.project, cloud.gcp.region))
        if cloud.azure is not None:
            from sundog.clouds import azure_quotas

            if not azure_quotas.has_credentials():
                return Allowed(None, f"no Azure credentials here{WHERE['azure']}")
            return Allowed(azure_quotas.allowed(cloud.azure.subscription, cloud.azure.location))
    except CapacityError as error:
        return Allowed(None, f"{error.message}{WHERE.get(cloud.name, '')}")
    return Allowed(None, f"{cloud.name} has none that could be asked for")


def _of_aws(aws: AwsCloud) -> Allowed:
    from sundog.clouds.aws_prices import allowed_vcpus, has_credentials

    if aws.endpoint is not None:
        return Allowed(None, "another EC2 endpoint has no quotas")
    if not has_credentials():
        return Allowed(None, "no AWS credentials here")
    return Allowed(allowed_vcpus(aws.region))


def observed(spec: ClusterSpec, clock: Clock = WALL) -> dict[str, Record]:
    """What became of spot nodes before, from the ledger of the spec's root. {} where it has none."""
    if not spec.root:
        return {}
    from sundog.storage.root import open_root

    now_s = clock.now_s()
    try:
        return spot_records(RootLedger(open_root(spec.root)).since(now_s - WINDOW_S), now_s)
    except SundogError:
        return {}  # a plan needs no history; `rework` says that it had none


@dataclass(frozen=True)
class Today:
    """What the cloud names today: prices, and machines that the package does not know yet."""

    prices: list[Price]
    shapes: list[Shape]
    why_no_shapes: str = ""


def today(path: str | Path, clock: Clock = WALL) -> Today:
    """Spot and on-demand of every shape that the spec's pools or head may become; on AWS also of GPU
    machines that came after this Sundog.

    SpecError where nothing is priced; CapacityError's kinds where the cloud does not answer.
    """
    source = read_spec(path)
    new, why_not = _new_shapes(source.spec)
    bought = check(source)
    # Every shape that fits, not only the ladder's rungs: which are the cheapest is to be found out. What is
    # new has no price yet, so the check does not count it as sold.
    shapes = {s.name for found in bought.fitting.values() for s in found}
    for pool in source.spec.pools.values():
        shapes |= {s.name for s in Catalogue(new).fitting("aws", pool.need, pool.shapes)}
    if bought.head is not None:
        shapes.add(bought.head.name)
    return Today(_prices(bought, shapes, path, clock), new, why_not)


def _new_shapes(spec: ClusterSpec) -> tuple[list[Shape], str]:
    if spec.cloud.aws is None:
        return [], ""
    from sundog.clouds import aws_prices

    try:
        with aws_profile():
            found = aws_prices.refresh_shapes(spec.cloud.aws.region)
    except CapacityError as error:  # prices are worth having without
        return [], error.message
    return [s for s in found if catalogue().shape("aws", s.name) is None], ""


def _prices(bought: Bought, shapes: set[str], path: str | Path, clock: Clock) -> list[Price]:
    region = bought.spec.cloud.region
    if bought.market_cloud == "aws":
        from sundog.clouds import aws_prices

        with aws_profile():
            return aws_prices.refresh_prices(region, shapes, clock=clock)
    if bought.market_cloud == "azure":
        from sundog.clouds import azure_prices

        return azure_prices.refresh_prices(region, shapes, clock=clock)
    if bought.market_cloud == "gcp":
        from sundog.clouds import gcp_prices

        return gcp_prices.refresh_prices(region, shapes, clock=clock)
    raise SpecError(f"{path}: nothing is bought there, so nothing has a price", "use it as it is")


def covered(
    prices: list[Price], book: PriceBook, shapes: Iterable[Shape] = ()
) -> tuple[int, list[str]]:
    """How many of these prices a book took that knows these shapes too, and why not the rest."""
    merged = book.with_more(prices, book.shapes.with_more(shapes))
    mine = set(prices)
    refused = [f"{r.row.shape} {r.row.zone}: {r.reason}" for r in merged.rejected if r.row in mine]
    return len(mine) - len(refused), refused
