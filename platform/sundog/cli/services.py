"""sundog deploy, undeploy, services: what answers behind the gateway."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from sundog.cli.connection import cluster, gateway
from sundog.cli.output import Json, Output, Yes, confirm
from sundog.clock import WALL
from sundog.errors import ControlUnavailable, NotFound, ServiceError
from sundog.security import exposure
from sundog.serving.asking import KeyRefused, ask, own_key

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
    dashboard = cluster().dashboard
    names = serve_files.deploy_file(file, dashboard)
    if wait:
        serve_files.wait_applied(names, dashboard, wait)
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
        ask(address, "/sundog/services")
    except (ServiceError, ControlUnavailable, NotFound):
        return False
    return True


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
    return list(ask(gateway(), "/sundog/services", own_key()))


def wait_until_ready(name: str, seconds: float) -> float:
    """Seconds until the service answered ready. Raises ServiceError with the reason it has not."""
    start = WALL.monotonic_s()
    last = "the gateway does not answer yet"
    while WALL.monotonic_s() - start < seconds:
        try:
            ask(gateway(), f"/v2/models/{quote(name, safe='')}/ready", own_key())
            return WALL.monotonic_s() - start
        except KeyRefused:
            raise
        except (ServiceError, NotFound, ControlUnavailable):
            pass
        try:
            mine = [s for s in list_services() if s.get("service") == name]
            last = str(mine[0].get("message") or mine[0].get("state")) if mine else "not listed yet"
            if mine and mine[0].get("state") == "failed":
                break
        except (ServiceError, ControlUnavailable):
            pass
        WALL.sleep(0.1)
    raise ServiceError(
        f"{name} is not ready after {WALL.monotonic_s() - start:.0f} s: {last}",
        "its replicas' logs say more: ray logs / the dashboard's Serve page; `sundog services`",
    )
