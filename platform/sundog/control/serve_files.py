"""Deployment files against Serve's REST API: merge one file's applications, remove one.

`serve deploy` replaces the whole list of applications; this keeps those of other files. Speaks HTTP
to Ray's dashboard only and needs no connection to the cluster.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from sundog.clock import WALL
from sundog.errors import ClusterError, NotFound, ServiceError, SpecError
from sundog.spec.load import read_text, read_yaml, validate
from sundog.spec.service import ServiceSpec

IMPORT_PATH = "sundog:service"
_PATH = "/api/serve/applications/"
_TIMEOUT_S = 60.0
# What Serve's REST schema takes at the top level; the rest of its answer describes state.
_TOP = ("proxy_location", "http_options", "grpc_options", "logging_config", "target_capacity")


def read_file(path: str | Path) -> dict[str, Any]:
    """A deployment file, its services checked: faults name file, line and key. SpecError."""
    text = read_text(path)
    data, lines = read_yaml(text, str(path))
    apps = data.get("applications") if isinstance(data, dict) else None
    if not isinstance(apps, list) or not apps:
        raise SpecError(
            f"{path}: it lists no applications",
            "a deployment file is Serve's schema; `sundog init` writes one to start from",
        )
    declared: dict[str, str] = {}
    for i, app in enumerate(apps):
        at = ("applications", i)
        if not isinstance(app, dict) or not app.get("name"):
            raise SpecError(f"{path}:{lines.get(at, 1)}: an application needs a name", "name: …")
        if app.get("import_path") == IMPORT_PATH:
            spec = validate(app.get("args"), ServiceSpec, str(path), lines, (*at, "args"))
            other = declared.setdefault(spec.service, app["name"])
            if other != app["name"]:
                raise _twice(f"{path}:{lines.get(at, 1)}: ", spec.service, app["name"], other)
    return data


def _twice(where: str, service: str, name: str, other: str) -> SpecError:
    return SpecError(
        f"{where}application {name} declares service {service}, as application {other} does",
        f"name this application {other}, or give its service another name",
    )


def read_services(path: str | Path) -> list[ServiceSpec]:
    """The specs of the services that a file declares."""
    return [
        ServiceSpec.model_validate(app["args"])
        for app in read_file(path)["applications"]
        if app.get("import_path") == IMPORT_PATH
    ]


def notes(spec: ServiceSpec) -> list[str]:
    """What of a spec has no effect, or another one than somebody may expect."""
    said = []
    low, high = spec.replicas.low, spec.replicas.high
    if low == 0 and spec.hold < 10:
        said.append(
            f"hold {spec.hold:g} s: a request that wakes the service waits for a replica to start, "
            "which takes several seconds; hold more, or keep one: replicas 1..n"
        )
    asked = [word for word in ("p95", "p99", "first") if getattr(spec.slo, word) is not None]
    if asked and max(low, 1) == high:
        said.append(
            f"slo {', '.join(asked)}: with {high} replica(s) always, it only refuses what would be late "
            f"and sizes batches; for replicas that follow it write {max(low, 1)}..{(high or 1) * 4}"
        )
    if not spec.idempotent and "batch" in spec.model_fields_set and spec.batch > 1:
        said.append(
            f"batch {spec.batch}: requests that must not be asked twice (idempotent: false) are never "
            "stacked"
        )
    rollout = spec.rollout
    if rollout.sticky and rollout.strategy in ("all-at-once", "shadow", "blue-green"):
        said.append(f"rollout sticky: a {rollout.strategy} rollout splits no traffic")
    if rollout.strategy == "ab" and not rollout.sticky:
        said.append(
            "rollout ab: each request is dealt by itself, so a user sees both versions; "
            "write sticky: key, or sticky: header:X-User"
        )
    if rollout.strategy == "all-at-once" and rollout.webhook:
        said.append("rollout webhook: all-at-once never ends; only `sundog rollback` tells it")
    if "feedback" in rollout.guards and rollout.strategy == "all-at-once":
        said.append("rollout guards: all-at-once is guarded by nothing")
    return said


def deploy_file(path: str | Path, dashboard_address: str, token: str | None = None) -> list[str]:
    """Deploy a file's applications and keep all others; returns the names of its services."""
    data = read_file(path)
    with _client(dashboard_address, token) as client:
        current = _declared(client)
        names = {app["name"] for app in data["applications"]}
        kept = [app for app in current["applications"] if app["name"] not in names]
        there = {service: app["name"] for app in kept if (service := _service(app))}
        for app in data["applications"]:
            if _service(app) in there:
                raise _twice("", _service(app), app["name"], there[_service(app)])
        _put(client, {**current, **data, "applications": [*kept, *data["applications"]]})
    return [
        app["args"]["service"]
        for app in data["applications"]
        if app.get("import_path") == IMPORT_PATH
    ]


def wait_applied(
    services: Sequence[str], dashboard_address: str, timeout_s: float, token: str | None = None
) -> None:
    """Until Serve has taken the specs of `services`. ServiceError with what it refuses one for: then
    what answered before goes on."""
    end_s = WALL.monotonic_s() + timeout_s
    waiting = set(services)
    with _client(dashboard_address, token) as client:
        while waiting and WALL.monotonic_s() < end_s:
            for app in _ask(client, "GET").get("applications", {}).values():
                name = ((app.get("deployed_app_config") or {}).get("args") or {}).get("service")
                if name not in waiting:
                    continue
                if app["status"] == "DEPLOY_FAILED":
                    raise ServiceError(f"{name}: {refusal(app.get('message') or '')}")
                if app["status"] == "RUNNING":
                    waiting.remove(name)
            if waiting:
                WALL.sleep(0.1)


def refusal(message: str) -> str:
    """What an anchor said, out of Serve's traceback around it."""
    lines = [line.strip() for line in message.strip().splitlines()]
    for number, line in reversed(list(enumerate(lines))):
        kind, colon, said = line.partition(": ")
        if colon and kind.startswith("sundog.errors."):
            return "\n  ".join([said, *(rest for rest in lines[number + 1 :] if rest)])
    return lines[-1] if lines else "Serve does not say why"


def _service(app: dict[str, Any]) -> str:
    """The service that an application declares; empty for one that is none of ours."""
    ours = app.get("import_path") == IMPORT_PATH
    return str((app.get("args") or {}).get("service") or "") if ours else ""


def undeploy(name: str, dashboard_address: str, token: str | None = None) -> None:
    """Remove the application of a service, by the service's or the application's name. NotFound."""
    with _client(dashboard_address, token) as client:
        current = _declared(client)
        gone = [
            app
            for app in current["applications"]
            if name in (app["name"], (app.get("args") or {}).get("service"))
        ]
        if not gone:
            known = [app["name"] for app in current["applications"]]
            near = difflib.get_close_matches(name, known, n=1)
            raise NotFound(
                f"no deployed service is called {name!r}",
                f"did you mean {near[0]!r}?" if near else f"deployed: {', '.join(known) or 'none'}",
            )
        kept = [app for app in current["applications"] if app not in gone]
        _put(client, {**current, "applications": kept})


def _declared(client: httpx.Client) -> dict[str, Any]:
    """What earlier files declared: control's own applications are not among them."""
    answer = _ask(client, "GET")
    apps = [
        app["deployed_app_config"]
        for app in answer.get("applications", {}).values()
        if app.get("source") == "declarative"
        and app.get("deployed_app_config")
        and app.get("status") != "DELETING"
    ]
    top = {key: answer[key] for key in _TOP if answer.get(key) is not None and key in _TOP[:1]}
    return {**top, "applications": apps}


def _put(client: httpx.Client, body: dict[str, Any]) -> None:
    _ask(client, "PUT", json=body)


def _ask(client: httpx.Client, method: str, **kwargs: Any) -> dict[str, Any]:
    try:
        try:
            answer = client.request(method, _PATH, **kwargs)
        except httpx.RemoteProtocolError:
            # A dashboard that is still starting drops connections; both calls may be repeated.
            WALL.sleep(1.0)
            answer = client.request(method, _PATH, **kwargs)
    except httpx.HTTPError as error:
        raise ClusterError(
            f"no Ray dashboard at {client.base_url}: {error}",
            'start one with `make up`, then `eval "$(sundog env)"`',
        ) from None
    if answer.status_code in (401, 403):
        raise ClusterError(
            f"the dashboard at {client.base_url} refuses the token",
            "RAY_AUTH_TOKEN_PATH must name the token of this cluster",
        )
    if answer.status_code >= 400:
        raise ClusterError(f"Serve refuses: {answer.text.strip()[-500:]}", "see `serve status`")
    return answer.json() if method == "GET" else {}


def _client(address: str, token: str | None) -> httpx.Client:
    headers = {}
    secret = token or _token()
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    return httpx.Client(
        base_url=address.rstrip("/"), headers=headers, timeout=_TIMEOUT_S, trust_env=False
    )


def _token() -> str:
    """Ray's token, where its own CLI looks for it; empty where there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
