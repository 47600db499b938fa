"""sundog deploy, undeploy, services: what answers behind the gateway."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import typer

from sundog.cli.connection import cluster, gateway
from sundog.cli.output import Json, Output, Yes, confirm
from sundog.clock import WALL
from sundog.errors import ControlUnavailable, ServiceError
from sundog.security import exposure
from sundog.security.tls import client_context, way_out

Wait = Annotated[float, typer.Option("--wait", help="Seconds to wait until it answers; 0: do not.")]


def register(app: typer.Typer) -> None:
    app.command()(deploy)
    app.command()(undeploy)
    app.command()(services)


def deploy(
    file: Annotated[str, typer.Argument(help="A Serve config file, the service spec in `args`.")],
    wait: Wait = 120.0,
    as_json: Json = False,
) -> None:
    """Deploy the services of a file, beside those that are there.

    `serve deploy FILE` does the same, but removes declared services that the file lacks.

    Example: sundog deploy deployments/digits.yaml
    """
    from sundog.control import serve_files

    out = Output(as_json)
    # Look at the file first: a typo needs no cluster to be found.
    serve_files.read_file(file)
    names = serve_files.deploy_file(file, cluster().dashboard)
    said = [
        f"{spec.service}: {note}"
        for spec in serve_files.read_services(file)
        for note in serve_files.notes(spec)
    ]
    for note in said:
        out.say(note)
    for name in names:
        if wait:
            wait_until_ready(name, wait)
        out.say(f"{name}: {gateway()}/v2/models/{name}/infer")
    if _is_open(gateway()):
        said.append(exposure.warning(gateway()))
        out.say(said[-1])
    out.data({"deployed": names, "gateway": gateway(), "notes": said})


def _is_open(address: str) -> bool:
    """Whether others reach the gateway and it asks nobody for a key. One that is not there is not."""
    if not exposure.beyond_this_machine(address):
        return False
    try:
        answer = httpx.get(
            f"{address}/sundog/services", timeout=5, trust_env=False, verify=client_context()
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def undeploy(
    name: Annotated[str, typer.Argument(help="The service.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take a service away. Its model stays in the registry.

    Example: sundog undeploy digits
    """
    from sundog.control import serve_files

    out = Output(as_json)
    where = cluster().dashboard
    confirm(f"Undeploy {name}? Its callers get 404 from then on.", yes)
    serve_files.undeploy(name, where)
    out.say(f"undeployed {name}")
    out.data({"undeployed": name})


def services(as_json: Json = False) -> None:
    """Every service: version, state, replicas.

    Example: sundog services
    """
    out = Output(as_json)
    rows = list_services()
    out.data(rows)
    out.table(
        ["service", "state", "model", "version", "replicas", "why"],
        [
            (
                r.get("service"),
                r.get("state"),
                r.get("model"),
                _versions(r),
                r.get("replicas"),
                r.get("message"),
            )
            for r in rows
        ],
        "no services; deploy one: sundog deploy deployments/digits.yaml",
    )


def _versions(row: dict[str, Any]) -> str:
    """`3`, or `2 90%, 3 10%` while two share the traffic."""
    weights = row.get("weights") or {}
    if len(weights) < 2:
        return str(row.get("version") or "")
    return ", ".join(f"{v} {100 * w:.3g}%" for v, w in sorted(weights.items()))


def list_services() -> list[dict[str, Any]]:
    return list(_get("/sundog/services"))


def _get(path: str) -> Any:
    url = gateway()
    try:
        answer = httpx.get(url + path, timeout=10, trust_env=False, verify=client_context())
        answer.raise_for_status()
        return answer.json()
    except httpx.HTTPError as error:
        raise ControlUnavailable(
            f"no gateway at {url}: {error}",
            way_out(
                error,
                "deploy a service (the first one starts it), or say where it is: "
                "SUNDOG_GATEWAY=http://host:port",
            ),
        ) from None


def wait_until_ready(name: str, seconds: float) -> float:
    """Seconds until the service answered ready. Raises ServiceError with the reason it has not."""
    start = WALL.monotonic_s()
    url, trusted = f"{gateway()}/v2/models/{name}/ready", client_context()
    last = "the gateway does not answer yet"
    while WALL.monotonic_s() - start < seconds:
        try:
            if httpx.get(url, timeout=5, trust_env=False, verify=trusted).status_code == 200:
                return WALL.monotonic_s() - start
            mine = [s for s in list_services() if s.get("service") == name]
            last = str(mine[0].get("message") or mine[0].get("state")) if mine else "not listed yet"
            if mine and mine[0].get("state") == "failed":
                break
        except (httpx.HTTPError, ControlUnavailable):
            pass
        WALL.sleep(0.1)
    raise ServiceError(
        f"{name} is not ready after {WALL.monotonic_s() - start:.0f} s: {last}",
        "its replicas' logs say more: ray logs / the dashboard's Serve page; `sundog services`",
    )
