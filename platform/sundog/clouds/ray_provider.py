"""A cloud through Ray's own node provider for it, one a zone: for clouds without calls of our own.

Ray's providers take no idempotency token, so the token is a label: whatever a failed call bought is
found by it before anything is bought again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sundog.clock import WALL, Clock
from sundog.clouds.base import Machine, Order, Unsupported
from sundog.errors import CapacityError

POOL, MARKET, ZONE = "sundog:pool", "sundog:market", "sundog:zone"
TOKEN, SHAPE, BORN = "sundog:token", "sundog:shape", "sundog:born"


class Dialect(Protocol):
    """How one cloud says what ours says."""

    def config(self, order: Order) -> dict[str, Any]:
        """The node configuration of the cluster file with the offer's shape, market and zone."""
        ...

    def labels(self, tags: Mapping[str, str]) -> dict[str, str]: ...

    def tags(self, labels: Mapping[str, str]) -> dict[str, str]: ...

    def typed(self, error: Exception) -> CapacityError: ...


class RayCloud:
    """`providers` is Ray's node provider for each zone; it is told of one zone only."""

    def __init__(self, dialect: Dialect, providers: Mapping[str, Any], clock: Clock = WALL) -> None:
        self._dialect, self._providers, self._clock = dialect, dict(providers), clock
        self._zone_of: dict[str, str] = {}

    def launch(self, order: Order) -> list[Machine]:
        provider = self._providers.get(order.zone)
        if provider is None:
            raise Unsupported(f"this cluster has no provider for zone {order.zone!r}")
        born = {SHAPE: order.shape, BORN: str(int(self._clock.now_s())), TOKEN: order.token}
        labels = self._dialect.labels({**order.tags, **born})
        try:
            provider.create_node(self._dialect.config(order), labels, order.count)
        except Exception as error:
            # One of several may have been granted before another was refused.
            made = self._after(order)
            if made:
                return made
            raise self._dialect.typed(error) from error
        return self._in(order.zone, {TOKEN: order.token})

    def _after(self, order: Order) -> list[Machine]:
        try:
            return self._in(order.zone, {TOKEN: order.token})
        except CapacityError:
            return []  # the error of the launch itself says more

    def machines(self, cluster: str) -> list[Machine]:
        """Ray's providers list the nodes of their own cluster only."""
        return [m for zone in self._providers for m in self._in(zone, {})]

    def bought(self, token: str) -> list[Machine]:
        return [m for zone in self._providers for m in self._in(zone, {TOKEN: token})]

    def _in(self, zone: str, tags: Mapping[str, str]) -> list[Machine]:
        provider = self._providers[zone]
        try:
            ids = provider.non_terminated_nodes(self._dialect.labels(tags))
            found = [self._machine(provider, zone, id_) for id_ in ids]
        except Exception as error:
            raise self._dialect.typed(error) from error
        self._zone_of.update((m.id, zone) for m in found)
        return found

    def _machine(self, provider: Any, zone: str, id_: str) -> Machine:
        tags = self._dialect.tags(provider.node_tags(id_) or {})
        born = tags.get(BORN, "")
        return Machine(
            id_, "running" if provider.is_running(id_) else "pending",
            tags.get(MARKET, "on-demand"), tags.get(ZONE, zone), tags.get(SHAPE, ""),
            float(born) if born.isdigit() else 0.0, tags, provider.internal_ip(id_),
            provider.external_ip(id_),
        )  # fmt: skip

    def terminate(self, ids: Sequence[str]) -> None:
        listed = False
        for id_ in ids:
            if id_ not in self._zone_of and not listed:
                self.machines("")
                listed = True
            zone = self._zone_of.get(id_)
            if zone is None:
                continue  # no zone has it: it is gone
            try:
                self._providers[zone].terminate_node(id_)
            except Exception as error:
                raise self._dialect.typed(error) from error

    def tag(self, ids: Sequence[str], tags: Mapping[str, str]) -> None:
        for id_ in ids:
            zone = self._zone_of.get(id_)
            if zone is None:
                self.machines("")
                zone = self._zone_of.get(id_)
            if zone is None:
                continue
            try:
                self._providers[zone].set_node_tags(id_, self._dialect.labels(tags))
            except Exception as error:
                raise self._dialect.typed(error) from error

    def zones(self, config: Mapping[str, Any]) -> list[str]:
        return list(self._providers)

    def spot_prices(self, shapes: Sequence[str]) -> Mapping[tuple[str, str], float]:
        """None: the prices in the cluster file stand until it is compiled again."""
        return {}
