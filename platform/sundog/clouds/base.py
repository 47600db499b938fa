"""What a cloud must do for the node provider, and the five ways in which it can refuse.

A few small operations, no policy: which offer to try, and what a refusal means, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sundog.errors import CapacityError


class CapacityRefused(CapacityError):
    """The zone has none of this shape in this market now."""


class PriceRefused(CapacityError):
    """The market price is above what we offer."""


class QuotaRefused(CapacityError):
    """The account may not have more of this family in this market and region."""


class Unsupported(CapacityError):
    """This zone never sells this shape."""


class AuthRefused(CapacityError):
    """The credentials or the role do not allow it; retrying or other rungs will not help."""


class Rejected(CapacityError):
    """The request itself is wrong (an image, a subnet, a key); other rungs will not help."""


class Transient(CapacityError):
    """Throttled, timed out or broken: it may or may not have happened."""


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance that is pending or running."""

    id: str
    state: str
    market: str
    zone: str
    shape: str
    launched_s: float
    tags: Mapping[str, str]
    internal_ip: str | None = None
    external_ip: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One launch call: up to `count` machines of one offer.

    `token` makes it idempotent: the same token never buys twice. `config` is the cloud's own launch
    configuration from the cluster file, which the offer's shape, market and zone override.
    """

    market: str
    zone: str
    shape: str
    count: int
    token: str
    tags: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    max_price_usd_hour: float | None = None
    efa: bool = False


class Cloud(Protocol):
    """All calls raise only CapacityError's kinds. None retries: the caller counts every call."""

    def launch(self, order: Order) -> list[Machine]:
        """Buy 1 to `order.count` machines, tagged from creation. One API call."""
        ...

    def machines(self, cluster: str) -> list[Machine]:
        """Every pending or running machine of the cluster."""
        ...

    def bought(self, token: str) -> list[Machine]:
        """What an earlier launch with this token bought and is still there."""
        ...

    def terminate(self, ids: Sequence[str]) -> None:
        """End these machines for good. Those already gone are no error."""
        ...

    def tag(self, ids: Sequence[str], tags: Mapping[str, str]) -> None: ...

    def zones(self, config: Mapping[str, Any]) -> list[str]:
        """The zones that a launch configuration can reach, by the names that offers use."""
        ...

    def spot_prices(self, shapes: Sequence[str]) -> Mapping[tuple[str, str], float]:
        """Today's spot price in dollars an hour by (zone, shape); what has none is left out."""
        ...
