"""GCP in Ray's terms: what a refusal means, what a label may hold, where market and shape go."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from sundog.clock import Clock
from sundog.clouds.base import (
    AuthRefused,
    CapacityRefused,
    Order,
    QuotaRefused,
    Rejected,
    Transient,
    Unsupported,
)  # fmt: skip
from sundog.clouds.ray_provider import Seen
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
ON_NODE = ("sundog:pool", "sundog:usd-hour", "ray-cluster-name")
_WITH_GPUS = re.compile(r"(a[2-9]x?|g[24])-")
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
        elif out.get("guestAccelerators") or _WITH_GPUS.match(order.shape):
            # Machines with GPUs cannot migrate.
            out["scheduling"] = [{"onHostMaintenance": "TERMINATE", "automaticRestart": False}]
        else:
            # The others move on a host's maintenance and start again after its crash, the head too.
            out.pop("scheduling", None)
        # Labels cannot be read on the machine itself, and its agent records what it is.
        items = out.setdefault("metadata", {}).setdefault("items", [])
        for tag in ON_NODE:
            if tag in order.tags:
                items.append({"key": tag.replace(":", "-"), "value": order.tags[tag]})
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

    def seen(self, provider: Any, id_: str) -> Seen:
        node = provider._get_cached_node(id_)
        return Seen(
            node.get_labels(), node.is_running(), node.get_internal_ip(), node.get_external_ip()
        )

    def after_refusal(self, provider: Any, order: Order, clock: Clock) -> None:
        """An instance that is refused leaves nothing: its disk and address are parts of it."""


def _value(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text.lower())[:63]
