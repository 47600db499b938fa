"""Signals that services scale by beside their requests: Prometheus queries, asked in the background.

A round of control never waits for Prometheus; a signal that is not known lately says nothing.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx

from sundog.clock import Clock
from sundog.control.serving_plan import app_name
from sundog.serving.scaling import Signal
from sundog.spec import ServiceSpec
from sundog.spec.service import KNOWN_SIGNALS

EVERY_S = 2.0
STALE_S = 30.0
TIMEOUT_S = 2.0
SETTING = "RAY_PROMETHEUS_HOST"
"""Ray's own setting, which its dashboard reads as well."""

log = logging.getLogger("sundog.control")

Ask = Callable[[str], float]


@dataclass
class _Known:
    """What is known of one query: its value and when, or why there is none."""

    wanted_s: float
    value: float = math.nan
    at_s: float = -math.inf
    fault: str = ""


class Signals:
    """`read` says what is known and keeps a query asked for; `ask_all` asks, `start` in a thread."""

    def __init__(self, clock: Clock, ask: Ask | None = None) -> None:
        self._clock = clock
        self._ask = ask or ask_prometheus
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def read(self, spec: ServiceSpec, version: str, ready: int) -> tuple[tuple[Signal, ...], str]:
        """The signals of a version with `ready` replicas, and why one of them is not known."""
        found, faults = [], []
        now_s = self._clock.monotonic_s()
        for signal in spec.signals:
            query = query_of(spec.service, version, signal.name, signal.query)
            with self._lock:
                known = self._known.setdefault(query, _Known(now_s))
                known.wanted_s = now_s
                value, at_s, fault = known.value, known.at_s, known.fault
            if now_s - at_s <= STALE_S:
                share = value / max(ready, 1) if signal.query is None else value
                found.append(Signal(signal.name, share, signal.target))
            elif fault:
                faults.append(f"signal {signal.name}: {fault}")
        return tuple(found), "; ".join(faults)

    def ask_all(self) -> None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._known = {q: k for q, k in self._known.items() if now_s - k.wanted_s <= STALE_S}
            queries = list(self._known)
        for query in queries:
            value, fault = math.nan, ""
            try:
                value = self._ask(query)
            except (httpx.HTTPError, ValueError) as error:
                fault = str(error) or type(error).__name__
            with self._lock:
                known = self._known.get(query)
                if known is None:
                    continue
                if fault and fault != known.fault:
                    log.warning("%s: %s", query, fault)
                known.fault = fault
                if not fault:
                    known.value, known.at_s = value, self._clock.monotonic_s()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self.ask_all()


# Over all replicas of a version; Ray's agents report them for every process by its title.
_REPLICAS = 'Component=~"ray::ServeReplica:$app:.*"'
_KNOWN: Mapping[str, str] = {
    "cpu": f"sum(ray_component_cpu_percentage{{{_REPLICAS}}}) / 100",
    "gpu": f"sum(ray_component_gpu_percentage{{{_REPLICAS}}}) / 100",
    "gpu-memory": f"sum(ray_component_gpu_memory_mb{{{_REPLICAS}}}) * 1048576",
}
assert set(_KNOWN) == set(KNOWN_SIGNALS)


def query_of(service: str, version: str, name: str, query: str | None) -> str:
    """The PromQL of a signal; `$service`, `$version` and `$app` stand for what is scaled."""
    text = query if query is not None else _KNOWN[name]
    places = {"$service": service, "$version": version, "$app": app_name(service, version)}
    for place, value in places.items():
        text = text.replace(place, value)
    return text


def ask_prometheus(query: str) -> float:
    """One query's value, the mean where it has several. ValueError and HTTPError say why not."""
    host = os.environ.get(SETTING)
    if not host:
        raise ValueError(f"set {SETTING}=http://host:9090 on the head")
    answer = httpx.get(
        f"{host.rstrip('/')}/api/v1/query",
        params={"query": query}, timeout=TIMEOUT_S, trust_env=False,
    )  # fmt: skip
    document = answer.json()
    if document.get("status") != "success":
        raise ValueError(f"Prometheus says: {document.get('error', answer.status_code)}")
    result = document["data"]["result"]
    rows = [result] if document["data"]["resultType"] == "scalar" else [r["value"] for r in result]
    values = [float(value) for _, value in rows]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError("Prometheus has no value for its query (yet)")
    return sum(values) / len(values)
