"""Azure in Ray's terms: what a refusal means, and where market and shape go in its template."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sundog.clouds.base import (
    AuthRefused,
    CapacityRefused,
    Order,
    PriceRefused,
    QuotaRefused,
    Rejected,
    Transient,
    Unsupported,
)  # fmt: skip
from sundog.errors import CapacityError

# A deployment's own code is DeploymentFailed; what counts is in its details, so all text is read.
_SAID: tuple[tuple[str, type[CapacityError]], ...] = (
    (r"MaxPrice|SpotPriceGreaterThan", PriceRefused),
    (r"QuotaExceeded|exceeding approved .*[Qq]uota|[Qq]uota exceeded", QuotaRefused),
    (r"NotAvailableForSubscription|InvalidParameter.*vmSize|requested VM size .* is not available in",
     Unsupported),
    (r"SkuNotAvailable|(Zonal)?AllocationFailed|Overconstrained\w*Allocation", CapacityRefused),
    (r"AuthorizationFailed|InvalidAuthenticationToken|ClientAuthenticationError", AuthRefused),
    (r"TooManyRequests|InternalServerError|ServiceUnavailable|RetryableError", Transient),
    (r"\bInvalid\w+|BadRequest|ResourceGroupNotFound|ImageNotFound|MarketplacePurchase", Rejected),
)  # fmt: skip
_FIX: dict[type[CapacityError], str] = {
    AuthRefused: "az login, or give the identity Contributor on the resource group",
    QuotaRefused: "ask for a higher quota: portal, Quotas, Compute (spot has its own)",
    Rejected: "check image, network and resource group in the cluster file",
}
_NAME, _RAY_NAME = "Name", "ray-node-name"


class Azure:
    def config(self, order: Order) -> dict[str, Any]:
        """Size, priority and price limit of the offer over the file's template parameters."""
        out: dict[str, Any] = copy.deepcopy(dict(order.config))
        arm = out.setdefault("azure_arm_parameters", {})
        arm["vmSize"] = order.shape
        if order.zone:
            arm["availability_zone"] = order.zone
        arm.pop("priority", None)
        arm.pop("billingProfile", None)
        if order.market == "spot":
            arm["priority"] = "Spot"
            arm["billingProfile"] = {"maxPrice": order.max_price_usd_hour or -1}
        return out

    def labels(self, tags: Mapping[str, str]) -> dict[str, str]:
        return {_RAY_NAME if k == _NAME else k: v[:256] for k, v in tags.items()}

    def tags(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {_NAME if k == _RAY_NAME else k: v for k, v in labels.items()}

    def typed(self, error: Exception) -> CapacityError:
        text = " ".join(_texts(error))
        for pattern, kind in _SAID:
            if re.search(pattern, text):
                return kind(text[:500], _FIX.get(kind, ""))
        return Transient(f"{type(error).__name__}: {text[:500]}")


def _texts(error: Any) -> Iterator[str]:
    """Code and message of all that the error wraps, the innermost first: it says the most."""
    inner = getattr(error, "error", None)
    for each in (*(getattr(inner, "details", None) or ()), inner):
        if each is not None:
            yield f"{getattr(each, 'code', '')} {getattr(each, 'message', '')}".strip()
    yield str(error)
