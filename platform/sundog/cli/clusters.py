"""sundog cluster: what a spec buys, the file that `ray up` takes, and `ray up` itself, asked first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from sundog.cli import cluster_nodes
from sundog.cli.output import Json, Output, Yes, confirm
from sundog.errors import ClusterError

app = typer.Typer(help="Clusters: compile a spec, see its price, ray up.", no_args_is_help=True)
cluster_nodes.register(app)

Spec = Annotated[str, typer.Argument(help="A cluster spec, such as cluster-configs/specs/x.yaml.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Ray's stock provider: no fallback to on-demand.")
]


@app.command("compile")
def compile_spec(
    files: Annotated[list[str], typer.Argument(help="Cluster specs.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here (one spec), or - for stdout.")
    ] = None,
    plain: Plain = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: fail if a file is not what it would be.")
    ] = False,
) -> None:
    """Compile specs to what plain `ray up` takes (or RayCluster manifests).

    Example: sundog cluster compile cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.compile import compile_cluster, compiled_name

    if output is not None and len(files) > 1:
        raise ClusterError("--output takes one spec", "compile them one by one, or leave it out")
    stale = []
    for file in files:
        compiled = compile_cluster(file, plain=plain)
        target = output or compiled_name(file)
        if str(target) == "-":
            print(compiled.text, end="")
            continue
        current = target.read_text() if target.is_file() else None
        if check:
            stale += [str(target)] if current != compiled.text else []
            continue
        if current != compiled.text:
            target.write_text(compiled.text)
        for warning in compiled.warnings:
            print(f"{file}: {warning}", file=sys.stderr)
        print(f"{file} → {target}" + ("" if current != compiled.text else " (unchanged)"))
    if stale:
        raise ClusterError(
            f"not what their specs compile to: {', '.join(stale)}",
            "write them again: sundog cluster compile " + " ".join(files),
        )


@app.command()
def plan(
    file: Spec,
    all_rungs: Annotated[bool, typer.Option("--all", help="Every rung of every ladder.")] = False,
    as_json: Json = False,
) -> None:
    """What the pools would cost, rung by rung, before money is spent.

    Example: sundog cluster plan cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.plan import plan_cluster, render, to_json

    out = Output(as_json)
    planned = plan_cluster(file)
    out.say(render(planned, all_rungs=all_rungs).rstrip("\n"))
    out.data(to_json(planned))


@app.command()
def up(file: Spec, plain: Plain = False, yes: Yes = False, as_json: Json = False) -> None:
    """Compile, show the price, ask, then `ray up`.

    Example: sundog cluster up cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.plan import plan_cluster, render
    from sundog.capacity.ready import make_ready

    out = Output(as_json)
    planned = plan_cluster(file)
    out.say(render(planned).rstrip("\n"))
    target = _compiled(file, plain)
    confirm(f"Start this cluster with `ray up {target}`?", yes)
    for made in make_ready(file):
        out.say(made)
    _ray("up", "--yes", str(target))
    out.data({"cluster": str(target), "state": "up"})


@app.command()
def down(file: Spec, yes: Yes = False, as_json: Json = False) -> None:
    """`ray down`: every node of the cluster goes, the head too. The storage root stays.

    Example: sundog cluster down cluster-configs/specs/aws-train.yaml
    """
    out = Output(as_json)
    target = _compiled(file, plain=False)
    confirm(f"End every node of the cluster of {target}?", yes)
    _ray("down", "--yes", str(target))
    out.data({"cluster": str(target), "state": "down"})


@app.command()
def status(file: Spec, as_json: Json = False) -> None:
    """Every node by pool, market, zone, price and age, from the cloud's own tags; $/h now.

    Example: sundog cluster status cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.compile import compiled_name
    from sundog.capacity.status import cluster_status, render, to_json

    out = Output(as_json)
    target = compiled_name(file)
    if not target.is_file():
        raise ClusterError(f"{target} is not there", f"write it: sundog cluster compile {file}")
    found = cluster_status(target)
    out.say(render(found))
    out.data(to_json(found))


def _compiled(file: str, plain: bool) -> Path:
    from sundog.capacity.compile import compile_cluster, compiled_name

    target = compiled_name(file)
    text = compile_cluster(file, plain=plain).text
    if not target.is_file() or target.read_text() != text:
        target.write_text(text)
    return target


def _ray(*arguments: str) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    code = subprocess.run([ray, *arguments], check=False).returncode
    if code:
        raise ClusterError(
            f"`ray {' '.join(arguments)}` ended with {code}",
            "its lines above say why; it can be run again",
        )
