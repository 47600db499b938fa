"""An in-process cloud for tests: scripted refusals, and failures before or after a call took effect."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sundog.clouds.base import CapacityRefused, Machine, Order, Transient

Fault = Literal["ok", "before", "after"]


@dataclass
class Instance:
    machine: Machine
    token: str


@dataclass
class ScriptedCloud:
    """`fault(call)` says what happens to each API call; `refuse(order)` returns an error or None."""

    fault: Callable[[str], Fault] = lambda call: "ok"
    refuse: Callable[[Order], Exception | None] = lambda order: None
    grants: Callable[[Order], int] = lambda order: order.count
    zone_names: tuple[str, ...] = ("z1", "z2")
    running: dict[str, Instance] = field(default_factory=dict)
    ever: dict[str, Instance] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    now_s: Callable[[], float] = lambda: 0.0
    prices: dict[tuple[str, str], float] = field(default_factory=dict)
    _ids: Any = field(default_factory=itertools.count)
    _lock: Any = field(default_factory=threading.Lock)

    def _enter(self, call: str) -> Fault:
        self.calls.append(call)
        fault = self.fault(call)
        if fault == "before":
            raise Transient(f"{call} did not arrive")
        return fault

    def launch(self, order: Order) -> list[Machine]:
        with self._lock:
            fault = self._enter("launch")
            self.orders.append(order)
            error = self.refuse(order)
            if error is not None:
                raise error
            made = self._of(order.token) or self._make(order)
        if fault == "after":
            raise Transient("the answer to launch was lost")
        return made

    def _make(self, order: Order) -> list[Machine]:
        made = []
        for _ in range(min(order.count, self.grants(order))):
            id_ = f"i-{next(self._ids)}"
            machine = Machine(
                id_, "running", order.market, order.zone, order.shape, self.now_s(),
                dict(order.tags), "10.0.0.1", None,
            )  # fmt: skip
            self.running[id_] = self.ever[id_] = Instance(machine, order.token)
            made.append(machine)
        return made

    def _of(self, token: str) -> list[Machine]:
        return [i.machine for i in self.running.values() if i.token == token]

    def machines(self, cluster: str) -> list[Machine]:
        with self._lock:
            self._enter("machines")
            return [
                i.machine
                for i in self.running.values()
                if i.machine.tags.get("ray-cluster-name") == cluster
            ]

    def bought(self, token: str) -> list[Machine]:
        with self._lock:
            self._enter("bought")
            return self._of(token)

    def terminate(self, ids: Sequence[str]) -> None:
        with self._lock:
            fault = self._enter("terminate")
            for id_ in ids:
                self.running.pop(id_, None)
        if fault == "after":
            raise Transient("the answer to terminate was lost")

    def tag(self, ids: Sequence[str], tags: Mapping[str, str]) -> None:
        with self._lock:
            fault = self._enter("tag")
            for id_ in ids:
                if id_ in self.running:
                    instance = self.running[id_]
                    merged = {**instance.machine.tags, **tags}
                    instance.machine = replace(instance.machine, tags=merged)
        if fault == "after":
            raise Transient("the answer to tag was lost")

    def zones(self, config: Mapping[str, Any]) -> list[str]:
        return list(self.zone_names)

    def spot_prices(self, shapes: Sequence[str]) -> Mapping[tuple[str, str], float]:
        with self._lock:
            self._enter("spot_prices")
            return {k: v for k, v in self.prices.items() if k[1] in shapes}


def refusing(market: str, kind: type[Exception] = CapacityRefused) -> Callable[[Order], Any]:
    return lambda order: kind(f"no {market}") if order.market == market else None
