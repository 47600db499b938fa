"""A drill on a service: kill one of its processes under load, and measure what callers notice."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import quote

from sundog.clock import WALL
from sundog.control.serving_plan import GATEWAY_APP, app_name
from sundog.errors import ControlUnavailable, NotFound, ServiceError
from sundog.rayapi import serve_apps
from sundog.serving.asking import ask
from sundog.serving.open_load import Load, OpenLoad, zeros

BEFORE_S = 2.0
AFTER_S = 1.0
BACK_WITHIN_S = 90.0


@dataclass(frozen=True)
class Receipt:
    """`back_s`: until there were as many replicas (or a gateway) as before; None: not in time."""

    service: str
    killed: str
    sent: int
    failed: int
    failures: dict[str, int]
    longest_gap_s: float
    back_s: float | None
    p99_before_s: float


def loader(gateway: str, service: str, key: str | None) -> OpenLoad:
    """A load of zeros that fit the service's model."""
    name = quote(service, safe="")
    inputs = ask(gateway, f"/v2/models/{name}", key)["inputs"]
    return OpenLoad(gateway, f"/v2/models/{name}/infer", zeros(inputs), key)


def replicas_of(gateway: str, service: str, key: str | None) -> int:
    rows = ask(gateway, "/sundog/services", key)
    return next((int(r["replicas"]) for r in rows if r["service"] == service), 0)


def drill(
    gateway: str, service: str, what: str, rate: float, version: str, key: str | None = None
) -> Receipt:
    """Kill a replica (or the gateway) of a service while it is asked. Connected to Ray."""
    return asyncio.run(_drill(gateway, service, what, rate, version, key))


async def _drill(
    gateway: str, service: str, what: str, rate: float, version: str, key: str | None
) -> Receipt:
    load = loader(gateway, service, key)
    before = replicas_of(gateway, service, key)
    calm = await load.run(rate, BEFORE_S)
    if calm.failed:
        raise ServiceError(
            f"{service} fails before anything was killed: {_failures(calm)}",
            "a drill needs a service that answers zeros; see its replicas' logs",
        )
    stop = asyncio.Event()
    under_load = asyncio.create_task(load.run(rate, BACK_WITHIN_S, stop))
    await asyncio.sleep(0.5)
    app, deployment = (
        (GATEWAY_APP, "Gateway") if what == "gateway" else (app_name(service, version), "Model")
    )
    killed = await asyncio.to_thread(serve_apps.kill_replica, app, deployment)
    began_s = WALL.monotonic_s()
    back_s = await _back(gateway, service, key, before, app, deployment, killed)
    if back_s is not None:
        back_s -= began_s
    await asyncio.sleep(AFTER_S)
    stop.set()
    seen = await under_load
    load.close()
    return Receipt(
        service, what, len(seen.sent), seen.failed, _failures(seen), seen.longest_gap_s(), back_s,
        calm.quantile_s(0.99),
    )  # fmt: skip


async def _back(
    gateway: str, service: str, key: str | None, before: int, app: str, deployment: str, killed: str
) -> float | None:
    end_s = WALL.monotonic_s() + BACK_WITHIN_S
    while WALL.monotonic_s() < end_s:
        await asyncio.sleep(0.1)
        try:
            ids = await asyncio.to_thread(serve_apps.replica_ids, app, deployment)
            new = killed not in ids and len(ids) > 0
            if new and await asyncio.to_thread(replicas_of, gateway, service, key) >= before:
                return WALL.monotonic_s()
        except (ControlUnavailable, NotFound, ServiceError):
            continue
    return None


def _failures(load: Load) -> dict[str, int]:
    found: dict[str, int] = {}
    for sent in load.sent:
        if sent.status != 200:
            word = str(sent.status) if sent.status else "no answer"
            found[word] = found.get(word, 0) + 1
    return found
