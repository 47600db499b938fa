"""A cloud through Ray's own node provider for it, one a zone: for clouds without calls of our own.

Ray's providers take no idempotency token, so the token is a label: whatever a failed call bought is
found by it before anything is bought again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sundog.clock import WALL, Clock
from sundog.clouds.base import Machine, Order, Transient, Unsupported
from sundog.errors import CapacityError

POOL, MARKET, ZONE = "sundog:pool", "sundog:market", "sundog:zone"
TOKEN, SHAPE, BORN = "sundog:token", "sundog:shape", "sundog:born"


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as the last listing saw it."""

    labels: Mapping[str, str]
    running: bool
    internal_ip: str | None
    external_ip: str | None


class Dialect(Protocol):
    """How one cloud says what ours says."""

    def config(self, order: Order) -> dict[str, Any]:
        """The node configuration of the cluster file with the offer's shape, market and zone."""
        ...

    def labels(self, tags: Mapping[str, str]) -> dict[str, str]: ...

    def tags(self, labels: Mapping[str, str]) -> dict[str, str]: ...

    def typed(self, error: Exception) -> CapacityError: ...

    def seen(self, provider: Any, id_: str) -> Seen:
        """From what Ray's provider keeps of its last listing: its own questions list all anew."""
        ...

    def after_refusal(self, provider: Any, order: Order, clock: Clock) -> None:
        """Remove what a refused order left behind. May take minutes; raises nothing."""
        ...


def in_a_thread(work: Callable[[], None]) -> None:
    # No daemon: `ray up` waits for it, and leaves nothing behind that costs.
    threading.Thread(target=work, name="sundog-clean-up").start()


class RayCloud:
    """`providers` is Ray's node provider for each zone; it is told of one zone only."""

    def __init__(
        self, dialect: Dialect, providers: Mapping[str, Any], clock: Clock = WALL,
        background: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:  # fmt: skip
        self._dialect, self._providers, self._clock = dialect, dict(providers), clock
        self._background = background
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
            why = self._dialect.typed(error)
            if not isinstance(why, Transient):  # after which it may still be at it
                self._background(lambda: self._dialect.after_refusal(provider, order, self._clock))
            # One of several may have been granted before another was refused.
            made = self._after(order)
            if made:
                return made
            raise why from error
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
        seen = self._dialect.seen(provider, id_)
        tags = self._dialect.tags(seen.labels)
        born = tags.get(BORN, "")
        return Machine(
            id_, "running" if seen.running else "pending", tags.get(MARKET, "on-demand"),
            tags.get(ZONE, zone), tags.get(SHAPE, ""), float(born) if born.isdigit() else 0.0,
            tags, seen.internal_ip, seen.external_ip,
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
