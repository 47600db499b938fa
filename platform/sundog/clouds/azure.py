"""Azure in Ray's terms: what a refusal means, and where market and shape go in its template."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sundog.clock import Clock
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
from sundog.clouds.ray_provider import TOKEN, Seen
from sundog.errors import CapacityError

logger = logging.getLogger(__name__)

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
# Azure keeps the network interface of a refused machine for it for three minutes.
CLEAN_TRIES, CLEAN_PAUSE_S = 6, 60.0
# Ray makes a deployment's name, and all in it, of this and 10 characters more; at most 64 in all.
_LONGEST_NAME = 40


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
        """Tags may hold all of ours. A node's name has its order in it: whatever is made is named so."""
        out = {_RAY_NAME if k == _NAME else k: v[:256] for k, v in tags.items()}
        if _RAY_NAME in out and TOKEN in out:
            out[_RAY_NAME] = _name(out[_RAY_NAME], out[TOKEN])
        return out

    def tags(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {_NAME if k == _RAY_NAME else k: v for k, v in labels.items()}

    def typed(self, error: Exception) -> CapacityError:
        text = " ".join(_texts(error))
        for pattern, kind in _SAID:
            if re.search(pattern, text):
                return kind(text[:500], _FIX.get(kind, ""))
        return Transient(f"{type(error).__name__}: {text[:500]}")

    def seen(self, provider: Any, id_: str) -> Seen:
        # A machine that is just being made has no addresses in it, and one without a public
        # address never has that key.
        node = provider._get_cached_node(id_)
        return Seen(
            node.get("tags") or {}, node.get("status") == "running", node.get("internal_ip"),
            node.get("external_ip"),
        )  # fmt: skip

    def after_refusal(self, provider: Any, order: Order, clock: Clock) -> None:
        """Ray's template makes network interface and public address before the machine."""
        name = order.tags.get(_NAME) or order.tags.get(_RAY_NAME)
        if not name:
            return
        for attempt in range(CLEAN_TRIES):
            if attempt:
                clock.sleep(CLEAN_PAUSE_S)
            try:
                _clean(provider, _name(name, order.token))
                return
            except Exception as error:  # noqa: BLE001 - the SDK's own, which may not be here
                logger.warning("left of refused order %s: %s", order.token, error)
        logger.error(
            "not removed after a refusal: interfaces or addresses named %s…; delete them by hand",
            _name(name, order.token),
        )


def _texts(error: Any) -> Iterator[str]:
    """Code and message of all that the error wraps, the innermost first: it says the most."""
    inner = getattr(error, "error", None)
    for each in (*(getattr(inner, "details", None) or ()), inner):
        if each is not None:
            yield f"{getattr(each, 'code', '')} {getattr(each, 'message', '')}".strip()
    yield str(error)


def _name(node: str, token: str) -> str:
    return f"{node[:_LONGEST_NAME]}-{token[:8]}"


def _clean(provider: Any, prefix: str) -> None:
    """Delete interfaces and addresses of that name that no machine holds. The SDK's errors."""
    group, network = provider.provider_config["resource_group"], provider.network_client
    left = [
        n.name for n in network.network_interfaces.list(group)
        if n.name.startswith(prefix) and n.virtual_machine is None
    ]  # fmt: skip
    for name in left:
        network.network_interfaces.begin_delete(group, name).wait()
    addresses = [
        a.name for a in network.public_ip_addresses.list(group)
        if a.name.startswith(prefix) and a.ip_configuration is None
    ]  # fmt: skip
    for name in addresses:
        network.public_ip_addresses.begin_delete(group, name).wait()
