"""doctor, init, env, schema, up, demo: this machine, and a Sundog on it."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from sundog import spec as specs
from sundog.cli import scaffold
from sundog.cli.checkup import examine
from sundog.cli.connection import DEFAULT_GATEWAY, endpoints, home
from sundog.cli.output import Json, Output
from sundog.errors import ClusterError, SpecError
from sundog.rayapi.local import read_record
from sundog.security.tls import certificate_of
from sundog.serving.places import default_nodes

_SCHEMAS: dict[str, Any] = {
    "run": specs.RunSpec,
    "sweep": specs.SweepSpec,
    "batch": specs.BatchSpec,
    "service": specs.ServiceSpec,
}


def register(app: typer.Typer) -> None:
    for command in (doctor, init, env, schema, up, demo):
        app.command()(command)


def doctor(
    root: Annotated[str | None, typer.Option("--root", help="Try this storage root.")] = None,
    as_json: Json = False,
) -> None:
    """What this machine and account can do, with the fix for each gap.

    Example: sundog doctor
    """
    out = Output(as_json)
    findings = examine(root)
    out.data([f.__dict__ for f in findings])
    for finding in findings:
        out.say(f"{finding.level:<5} {finding.name:<18} {finding.detail}")
        if finding.fix:
            out.say(f"{'':<24} → {finding.fix}")
    if any(f.level == "fail" for f in findings):
        raise typer.Exit(1)


def init(
    folder: Annotated[Path, typer.Argument(help="An empty folder, or a new one.")] = Path(),
    as_json: Json = False,
) -> None:
    """Scaffold a recipe, its run spec and a deployment: a start of your own.

    Example: sundog init my-model
    """
    out = Output(as_json)
    written = scaffold.write(folder)
    for path in written:
        out.say(f"wrote {path}")
    where = "" if folder == Path() else f"cd {folder} && "
    out.say(f"next: {where}sundog train run.yaml")
    out.data({"written": [str(p) for p in written]})


def env(as_json: Json = False) -> None:
    """Print the variables that make Ray's own CLIs and curl find this Sundog.

    Example: eval "$(sundog env)"
    """
    found = endpoints()
    if found is None:
        raise ClusterError(
            f"nothing was started from {Path.cwd()}", "start one here with `make up` or `sundog up`"
        )
    out = Output(as_json)
    variables = {k: v for k, v in found.env().items() if v}
    out.data(variables)
    for name, value in variables.items():
        out.say(f"export {name}={shlex.quote(value)}")


def schema(
    kind: Annotated[str, typer.Argument(help="run, sweep, batch, service or cluster.")],
    as_json: Json = False,
) -> None:
    """Print the JSON Schema of a spec, so that editors complete it; it is JSON either way.

    Example: sundog schema run > .vscode/run.schema.json
    """
    if kind == "cluster":
        from sundog.spec.cluster import ClusterSpec

        model: Any = ClusterSpec
    else:
        model = _SCHEMAS.get(kind)
    if model is None:
        raise SpecError(
            f"{kind!r} is not a kind of spec", f"one of: {', '.join(_SCHEMAS)}, cluster"
        )
    print(json.dumps(model.model_json_schema(by_alias=True), indent=1))


def up(
    root: Annotated[
        str | None, typer.Option("--root", help="Storage root; else .sundog/root in this folder.")
    ] = None,
    gateway: Annotated[
        str, typer.Option("--gateway", help="Where the gateway shall listen.")
    ] = DEFAULT_GATEWAY,
    grpc: Annotated[
        str | None,
        typer.Option("--grpc", help="Where the gateway speaks gRPC, or off; else a free port."),
    ] = None,
    gateways: Annotated[
        int,
        typer.Option(
            "--gateways",
            envvar="SUNDOG_GATEWAYS",
            min=1,
            max=32,
            help="So many behind one edge (HAProxy).",
        ),
    ] = 1,
    cpus: Annotated[int | None, typer.Option("--cpus", help="CPUs for Ray; else all.")] = None,
    with_demo: Annotated[
        bool, typer.Option("--demo", help="First train, register and deploy the digits demo.")
    ] = False,
) -> None:
    """Start a Sundog on this machine and keep it until Ctrl-C.

    Example: sundog up
    """
    from sundog.cli.demo import Demo
    from sundog.rayapi.local import LocalRay, remove_record, write_record, write_token

    # Not what the environment says: after `eval "$(sundog env)"` this folder's is still the same.
    running = read_record(home())
    if running is not None:
        raise ClusterError(
            f"a Sundog is already up in {home()}: Ray at {running.dashboard}, pid {running.pid}",
            'use it with eval "$(sundog env)", stop it with Ctrl-C where it runs, '
            "or start another with SUNDOG_HOME=./.sundog-2",
        )
    where = root or (home() / "root").as_uri()
    (home() / "root").mkdir(parents=True, exist_ok=True)
    address = _free_gateway(gateway)
    certificate_of(address)
    default_nodes(address)
    grpc_address = "" if grpc == "off" else grpc
    if grpc_address:
        grpc_address = _free_gateway(f"http://{grpc_address}", "--grpc ").removeprefix("http://")
    _end_like_ctrl_c()
    token = write_token(home() / "token")
    with LocalRay(
        where,
        num_cpus=cpus,
        gateway=address,
        gateway_grpc=grpc_address,
        gateways=gateways,
        token_path=token,
    ) as ray:
        write_record(home(), ray.endpoints)
        try:
            if with_demo:
                Demo(ray).run(drill=False)
            print(
                f"Sundog is up · Ray {ray.endpoints.dashboard} · gateway {address} · root {where}"
            )
            print('in another shell here:  eval "$(sundog env)"      Ctrl-C ends it', flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print("\nstopping", flush=True)
        finally:
            remove_record(home())


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the storage root afterwards.")] = False,
    as_json: Json = False,
) -> None:
    """Real data to a trained, swept, registered, served model, and a drill, on this machine.

    Example: sundog demo
    """
    from sundog.cli.demo import run_demo

    _end_like_ctrl_c()
    run_demo(keep=keep, out=Output(as_json))


def _end_like_ctrl_c() -> None:
    # SIGTERM ends through the `with` blocks that stop what was started. SIGINT is set as well: a
    # shell that starts a job in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _free_gateway(address: str, option: str = "--gateway http://") -> str:
    """`address`, if its port is free; otherwise an error that says how to choose another."""
    import socket
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "127.0.0.1", parts.port or 8420
    except ValueError as error:
        raise SpecError(
            f"{address} is no address: {error}", f"write {option}127.0.0.1:8420"
        ) from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"the gateway cannot listen on {host}:{port}: {error.strerror}",
                f"choose another: sundog up {option}{host}:{port + 1}",
            ) from None
    return f"{parts.scheme}://{host}:{port}"
