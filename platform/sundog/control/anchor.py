"""`import_path: sundog:service`: the application that stands in a deployment file for a service.

An anchor runs no replica. It carries the spec to where control sees it and makes sure that control
runs; the rest is control's. Removing the anchor undeploys the service.
"""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any

from sundog.control.client import ensure_control
from sundog.control.serving_plan import ANCHOR, GATEWAY_APP
from sundog.errors import SpecError
from sundog.serving.places import default_address, default_gateways, default_nodes
from sundog.spec import ServiceSpec
from sundog.spec.load import validate

if TYPE_CHECKING:
    from sundog.storage.models import ModelVersion, Registry


class Anchor:
    """Never started: the deployment may have zero replicas and has no traffic that would wake it."""

    def reconfigure(self, config: dict[str, Any]) -> None:
        pass


def service(args: dict[str, Any]) -> Any:
    """Serve's builder: `args` of the application -> the anchor. Raises SpecError, NotFound."""
    from ray import serve

    spec = check(args)
    control = ensure_control()
    control.poke.remote()
    return serve.deployment(
        Anchor,
        name=ANCHOR,
        ray_actor_options={"num_cpus": 0},
        autoscaling_config={"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1},
        user_config={"spec": spec.model_dump(mode="json")},
    ).bind()


def check(args: dict[str, Any]) -> ServiceSpec:
    """The spec in `args`, its model and its profile looked up: `serve status` says what is wrong."""
    from sundog.control import profiles
    from sundog.rayapi.kv import get_config
    from sundog.runs.place import check_reach
    from sundog.storage.models import Registry
    from sundog.storage.root import open_root

    name = args.get("service") if isinstance(args, dict) else None
    spec = validate(args, ServiceSpec, f"args of service {name or '?'}", {})
    if "--v" in spec.service or spec.service == GATEWAY_APP:
        raise SpecError(f"{spec.service!r} cannot be a service's name", "choose another one")
    root = open_root(spec.root or os.environ.get("SUNDOG_ROOT") or (get_config() or {}).get("root"))
    check_reach(root)
    # Control could only log what is wrong with these.
    default_gateways()
    default_nodes(default_address())
    found = Registry(root).get(spec.model)
    _check_capture(spec, _process(spec, Registry(root)) or found)
    limit_s = spec.slo.whole_s
    if limit_s and (profile := profiles.kept(root, found.name, found.version)) is not None:
        profiles.check_limit(found.name, found.version, profile["service_s"], limit_s)
    return spec


def _process(spec: ServiceSpec, registry: Registry) -> ModelVersion | None:
    """What the service does around its model, if it does something; none of it runs here."""
    if spec.process is None:
        return None
    found = registry.get(spec.process)
    if found.kind != "python":
        raise SpecError(
            f"service {spec.service}: process: {found.ref} is {found.kind}, not a python class",
            "register one: Registry.import_python(name, folder, 'module:Class', signature)",
        )
    if not spec.allow_code:
        raise SpecError(
            f"service {spec.service}: process: {found.ref} is code that runs in the replica",
            "write allow_code: true if you trust who registered it",
        )
    return found


def _check_capture(spec: ServiceSpec, found: ModelVersion) -> None:
    """A misspelt name would keep what must not be kept."""
    known = [t.name for t in (*found.signature.inputs, *found.signature.outputs)]
    for name in spec.capture.leave_out:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SpecError(
                f"service {spec.service}: capture.leave_out: {found.ref} has no input or output {name!r}",
                f"{hint}it has {', '.join(known)}",
            )
