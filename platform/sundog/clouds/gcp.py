"""GCP in Ray's terms: what a refusal means, what a label may hold, where market and shape go."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from sundog.clouds.base import (
    AuthRefused,
    CapacityRefused,
    Order,
    QuotaRefused,
    Rejected,
    Transient,
    Unsupported,
)  # fmt: skip
from sundog.errors import CapacityError

# In this order: the first that is found in what the API said. A stockout's text names quotas nowhere,
# but a rate limit's reason looks like a quota's.
_SAID: tuple[tuple[str, type[CapacityError]], ...] = (
    (r"ZONE_RESOURCE_POOL_EXHAUSTED|STOCKOUT|does not have enough resources", CapacityRefused),
    (r"rateLimitExceeded|userRateLimitExceeded|RATE_LIMIT_EXCEEDED", Transient),
    (r"QUOTA_EXCEEDED|quotaExceeded|[Qq]uota '[^']*' exceeded|CPUS_ALL_REGIONS", QuotaRefused),
    (r"machineTypes/\S+' was not found|[Mm]achine type .* does not exist|UNSUPPORTED_OPERATION",
     Unsupported),
    (r"acceleratorTypes?/\S+' was not found|is not available in zone", Unsupported),
    (r"Required '[\w.]+' permission|PERMISSION_DENIED|forbidden|Invalid Credentials|HttpError 401",
     AuthRefused),
    (r"HttpError 4(?!29)\d\d|INVALID|badRequest", Rejected),
)  # fmt: skip
_FIX: dict[type[CapacityError], str] = {
    AuthRefused: "the service account needs compute.instances.*; gcloud auth application-default login",
    QuotaRefused: "ask for a higher quota: console, IAM & Admin, Quotas",
    Rejected: "check image, disk type and network in the cluster file",
}
# Labels hold lower-case letters, digits, - and _ only.
_DROPPED = ("sundog:why",)
_NAME, _RAY_NAME = "Name", "ray-node-name"
SPOT = {
    "provisioningModel": "SPOT", "preemptible": True, "automaticRestart": False,
    "onHostMaintenance": "TERMINATE", "instanceTerminationAction": "DELETE",
}  # fmt: skip


class Gcp:
    """Ray's providers for GCP raise what the API said as text, so kinds are read from text."""

    def config(self, order: Order) -> dict[str, Any]:
        """Shape, zone and scheduling of the offer over the file's configuration."""
        out: dict[str, Any] = copy.deepcopy(dict(order.config))
        out["machineType"] = order.shape
        for disk in out.get("disks") or ():
            first = disk.get("initializeParams") or {}
            if "diskType" in first:
                first["diskType"] = re.sub(
                    r"zones/[^/]+/", f"zones/{order.zone}/", first["diskType"]
                )
        if order.market == "spot":
            out["scheduling"] = [dict(SPOT)]
        else:
            # Machines with GPUs cannot migrate; for the others this is how their end looks anyway.
            out["scheduling"] = [{"onHostMaintenance": "TERMINATE", "automaticRestart": False}]
        return out

    def labels(self, tags: Mapping[str, str]) -> dict[str, str]:
        return {
            _RAY_NAME if k == _NAME else k.replace(":", "-"): _value(v)
            for k, v in tags.items()
            if k not in _DROPPED
        }

    def tags(self, labels: Mapping[str, str]) -> dict[str, str]:
        out = {}
        for key, value in labels.items():
            if key == _RAY_NAME:
                out[_NAME] = value
            elif key.startswith("sundog-"):
                name = "sundog:" + key.removeprefix("sundog-")
                out[name] = value.replace("_", ".") if name == "sundog:usd-hour" else value
            else:
                out[key] = value
        return out

    def typed(self, error: Exception) -> CapacityError:
        text = str(error)
        for pattern, kind in _SAID:
            if re.search(pattern, text):
                return kind(text[:500], _FIX.get(kind, ""))
        return Transient(f"{type(error).__name__}: {text[:500]}")


def _value(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text.lower())[:63]
