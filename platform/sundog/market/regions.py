"""Names of regions, so that a misspelt one is found before a cloud is asked. Knows no prices."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# GCP's are in the price snapshot. A region that is newer than this list is a warning, not an error.
_AWS = """
af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2
ap-southeast-1 ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6
ap-southeast-7 ca-central-1 ca-west-1 cn-north-1 cn-northwest-1 eu-central-1 eu-central-2 eu-north-1
eu-south-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3 il-central-1 me-central-1 me-south-1
mx-central-1 sa-east-1 us-east-1 us-east-2 us-gov-east-1 us-gov-west-1 us-west-1 us-west-2
"""
_AZURE = """
australiacentral australiacentral2 australiaeast australiasoutheast austriaeast belgiumcentral
brazilsouth brazilsoutheast canadacentral canadaeast centralindia centralus chilecentral eastasia
eastus eastus2 francecentral francesouth germanynorth germanywestcentral indonesiacentral
israelcentral italynorth japaneast japanwest jioindiacentral jioindiawest koreacentral koreasouth
malaysiawest mexicocentral newzealandnorth northcentralus northeurope norwayeast norwaywest
polandcentral qatarcentral southafricanorth southafricawest southcentralus southeastasia southindia
spaincentral swedencentral swedensouth switzerlandnorth switzerlandwest uaecentral uaenorth uksouth
ukwest westcentralus westeurope westindia westus westus2 westus3
"""
NAMED = {"aws": _AWS.split(), "azure": _AZURE.split()}
ALIKE = 0.85

_WORDS = re.compile("north|south|east|west|central|gov")


def misspelt(cloud: str, region: str, priced: Iterable[str]) -> tuple[bool, list[str]]:
    """Whether the region is known, and the known ones that it may be a misspelling of.

    A number that differs misspells nothing: that is how new regions are named.
    """
    known = sorted({*NAMED.get(cloud, ()), *priced})
    if region in known:
        return True, []
    near = difflib.get_close_matches(region, known, 2, ALIKE)
    return False, [] if any(_letters(n) == _letters(region) for n in near) else near


def _letters(text: str) -> str:
    return "".join(c for c in text if c.isalpha())


def aws_zone_code(region: str) -> str:
    """What the ids of its zones begin with: us-east-1 -> use1."""
    first, *middle, number = region.split("-")
    return first + "".join(w[0] for part in middle for w in _WORDS.findall(part)) + number
