"""Serve applications as control makes and reads them: the gateway's, and one for a model version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sundog import __version__
from sundog.control.serving_plan import (
    GATEWAY_APP,
    App,
    environment_digest,
    made_of,
    service_of,
)
from sundog.control.serving_plan import digest as spec_digest
from sundog.rayapi import serve_apps, train_nodes
from sundog.serving.edge import Edge
from sundog.serving.gateway import Gateway
from sundog.serving.places import HEAD, label_of
from sundog.serving.replica import Model
from sundog.spec import ServiceSpec


@dataclass(frozen=True)
class GatewayPlace:
    """Where gateways shall be. `gateways`: of a node; `nodes`: which, see `places.default_nodes`."""

    address: str
    gateways: int = 1
    nodes: str = HEAD

    def config(self, count: int) -> dict[str, Any]:
        """What the applications are told, on so many nodes."""
        return {**asdict(self), "count": count}


def gateway_app(place: GatewayPlace, count: int = 1) -> Any:
    """A gateway at the address of each node, or an edge with several behind it."""
    from ray import serve

    config, gateways = place.config(count), place.gateways
    options: dict[str, Any] = {"num_cpus": 0}
    if place.nodes == HEAD:
        options["resources"] = {"node:__internal_head__": 0.001}
    elif labels := label_of(place.nodes):
        options["label_selector"] = labels

    def spread(each: int) -> dict[str, Any]:
        """So many on a node: as many as fit there in all, so each edge has its gateways beside it."""
        if place.nodes != HEAD:
            return {"max_replicas_per_node": each}
        return {"max_surge_percent": 100} if gateways > 1 else {}

    deployment = serve.deployment(
        Gateway, name="Gateway", num_replicas=gateways * count, ray_actor_options=options,
        user_config=config, health_check_period_s=1, graceful_shutdown_timeout_s=20,
        max_constructor_retry_count=3, **spread(gateways),
    )  # fmt: skip
    version = f"{__version__}/{place.address}/{gateways}/{place.nodes}"
    mine = {**config, "app": GATEWAY_APP}
    bound = serve_apps.pinned(deployment, version).bind(mine)
    if gateways == 1:
        return bound
    edge = serve.deployment(
        Edge, name="Edge", num_replicas=count, ray_actor_options=options, user_config=config,
        health_check_period_s=1, graceful_shutdown_timeout_s=40, max_constructor_retry_count=3,
        **spread(1),
    )  # fmt: skip
    return serve_apps.pinned(edge, version).bind(mine, bound)


def model_app(spec: ServiceSpec, place: dict[str, Any], replicas: int = 1) -> Any:
    """One model version as a Serve application."""
    from ray import serve

    options: dict[str, Any] = {"num_cpus": spec.resources.cpus}
    if spec.resources.gpus:
        options["num_gpus"] = spec.resources.gpus
    if spec.resources.gpu:
        options["accelerator_type"] = spec.resources.gpu
    if spec.resources.memory:
        options["memory"] = spec.resources.memory
    options |= train_nodes.placing(spec.resources.market, spec.resources.labels)
    if spec.requirements:
        options["runtime_env"] = {"pip": list(spec.requirements)}
    parts = made_of(spec, place["version"])
    # References to secrets travel, never values: each replica looks its own up.
    place = place | {
        "environment": spec.model_dump(mode="json", include={"env", "secrets"}),
        "gateway_app": GATEWAY_APP,
    }
    # A fixed number cannot be zero; nothing that Serve could scale by ever comes to a handle.
    asleep = {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}
    number: dict[str, Any] = (
        {"num_replicas": replicas} if replicas else {"autoscaling_config": asleep}
    )
    deployment = serve.deployment(
        Model, name="Model", ray_actor_options=options, **number,
        user_config={"digest": spec_digest(spec), "place": place, "made_of": parts},
        max_ongoing_requests=64, health_check_period_s=1, graceful_shutdown_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1, max_constructor_retry_count=2,
        max_surge_percent=100,
    )  # fmt: skip
    version = (
        f"{__version__}/{place['name']}@{place['version']}/{place['root']}/{spec.allow_code}"
        f"/{environment_digest(spec)}" + (f"/{spec.process}" if spec.process else "")
    )
    return serve_apps.pinned(deployment, version).bind(place)


def model_name(spec: ServiceSpec) -> str:
    return spec.model.partition("@")[0]


def versions_of(apps: Mapping[str, serve_apps.AppView], service: str) -> dict[str, App]:
    out = {}
    for name, view in apps.items():
        owner = service_of(name)
        if owner is None or owner[0] != service:
            continue
        model = view.deployments.get("Model")
        config = (model.user_config or {}) if model is not None else {}
        message = model.message if model is not None and model.message else view.message
        out[owner[1]] = App(
            view.status,
            brief(message),
            config.get("digest", ""),
            model.replicas_wanted if model is not None else None,
            model.replica_ids if model is not None else frozenset(),
            config.get("made_of"),
            model.nodes if model is not None else {},
            model.moving if model is not None else frozenset(),
        )
    return out


def gateway_is_missing(
    apps: Mapping[str, serve_apps.AppView], place: GatewayPlace, count: int
) -> bool:
    """Whether the gateway is not there, or is there for another address or number."""
    gateway = apps.get(GATEWAY_APP)
    if gateway is None:
        return True
    view = gateway.deployments.get("Gateway")
    return view is not None and view.user_config != place.config(count)


def gateway_fault(gateway: serve_apps.AppView | None) -> str:
    if gateway is None or gateway.status == "RUNNING":
        return ""
    views = [v for n in ("Edge", "Gateway") if (v := gateway.deployments.get(n)) is not None]
    return brief(next((v.message for v in views if v.message), gateway.message))


def brief(message: str) -> str:
    """The last error of a Serve message, without its stack trace."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    for i in range(len(lines) - 1, -1, -1):
        head, mark, rest = lines[i].partition(": ")
        if mark and head.rpartition(".")[2][:1].isupper() and " " not in head:
            return " ".join([rest, *lines[i + 1 : i + 3]])[:600]
    return (lines[-1] if lines else "")[:600]
