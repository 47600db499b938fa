"""sundog cluster: what a spec buys, the file that `ray up` takes, and `ray up` itself, asked first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sundog.cli import cluster_nodes, cluster_prices
from sundog.cli.cluster_prices import Prices
from sundog.cli.output import Json, Output, Yes, confirm
from sundog.errors import ClusterError

if TYPE_CHECKING:
    from sundog.capacity.plan import Plan
    from sundog.market.prices import PriceBook

app = typer.Typer(help="Clusters: compile a spec, see its price, ray up.", no_args_is_help=True)
cluster_nodes.register(app)
cluster_prices.register(app)

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
    prices: Prices = None,
    wheel: Annotated[
        bool,
        typer.Option("--wheel/--no-wheel", help="Also build the wheel that the nodes install."),
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: fail if a file is not what it would be.")
    ] = False,
) -> None:
    """Compile specs to what plain `ray up` takes (or RayCluster manifests).

    Example: sundog cluster compile cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.commands import mounts_wheel
    from sundog.capacity.compile import compile_cluster, compiled_name

    if output is not None and len(files) > 1:
        raise ClusterError("--output takes one spec", "compile them one by one, or leave it out")
    stale, book, needs_wheel = [], cluster_prices.book(prices), False
    for file in files:
        compiled = compile_cluster(file, plain=plain, book=book)
        target = output or compiled_name(file)
        if str(target) == "-":
            print(compiled.text, end="")
            continue
        current = target.read_text() if target.is_file() else None
        if check:
            stale += [str(target)] if current != compiled.text else []
            continue
        if current != compiled.text:
            _write(target, compiled.text)
        for warning in compiled.warnings:
            print(f"{file}: {warning}", file=sys.stderr)
        print(f"{file} → {target}" + ("" if current != compiled.text else " (unchanged)"))
        needs_wheel |= mounts_wheel(compiled.bought.spec)
    if stale:
        raise ClusterError(
            f"not what their specs compile to: {', '.join(stale)}",
            "write them again: sundog cluster compile " + " ".join(files),
        )
    if needs_wheel:
        _wheel(wheel)


def _wheel(build: bool) -> None:
    """The compiled files mount a wheel: build it here, or say where it comes from."""
    from sundog.capacity.commands import LOCAL_WHEEL_DIR
    from sundog.capacity.wheel import build_wheel, has_project

    if build and has_project():
        print(f"the nodes' Sundog: built {build_wheel()}")
        return
    print(
        f"the nodes' Sundog: {LOCAL_WHEEL_DIR}/*.whl must be there before `ray up`; "
        "`sundog cluster up` builds it in the repository, or say `install: {url: …}` in the spec",
        file=sys.stderr,
    )


@app.command()
def plan(
    file: Spec,
    all_rungs: Annotated[bool, typer.Option("--all", help="Every rung of every ladder.")] = False,
    prices: Prices = None,
    account: Annotated[
        bool, typer.Option("--account/--no-account", help="Ask the account for its quotas.")
    ] = True,
    as_json: Json = False,
) -> None:
    """What the pools would cost, rung by rung, before money is spent.

    Example: sundog cluster plan cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.plan import render, to_json

    out = Output(as_json)
    planned = _planned(file, cluster_prices.book(prices), account)
    out.say(render(planned, all_rungs=all_rungs).rstrip("\n"))
    out.data(to_json(planned))


@app.command()
def up(
    file: Spec, plain: Plain = False, prices: Prices = None, yes: Yes = False, as_json: Json = False
) -> None:
    """Compile, show the price, ask, then `ray up`.

    Example: sundog cluster up cluster-configs/specs/aws-train.yaml
    """
    from sundog.capacity.plan import render
    from sundog.capacity.ready import make_ready

    out = Output(as_json)
    _has_root(file)
    book = cluster_prices.book(prices)
    out.say(render(_planned(file, book, True, plain)).rstrip("\n"))
    target = _compiled(file, plain, book)
    _not_a_manifest(target, "apply")
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
    from sundog.capacity.compile import compiled_name
    from sundog.capacity.compiled import is_compiled

    out = Output(as_json)
    # What it was started from, as it is: the spec may have changed since, or no longer compile.
    target = Path(file) if is_compiled(file) else compiled_name(file)
    if not target.is_file():
        target = _compiled(file, plain=False)
    _not_a_manifest(target, "delete")
    confirm(f"End every node of the cluster of {target}?", yes)
    _ray("down", "--yes", str(target))
    out.data({"cluster": str(target), "state": "down"})


def _has_root(file: str) -> None:
    """A cluster that names a root must be able to write to one: its ledger and its runs go there."""
    from sundog.capacity.check import read_spec
    from sundog.capacity.reach import root_fault

    source = read_spec(file)
    root = source.spec.root
    if root and (fault := root_fault(root)):
        raise source.fault(
            ("root",), fault, "name your bucket (terraform output root), or leave `root` out"
        )


def _planned(file: str, book: PriceBook | None, ask: bool, plain: bool = False) -> Plan:
    from sundog.capacity.account import Allowed, allowed, observed
    from sundog.capacity.check import read_spec
    from sundog.capacity.plan import plan_cluster

    spec = read_spec(file).spec
    quotas = allowed(spec) if ask else Allowed(None, "not asked (--no-account)")
    records = observed(spec) if ask else None
    return plan_cluster(
        file,
        book=book,
        allowed=quotas.found,
        why_not=quotas.why_not,
        records=records,
        plain=plain,
    )


def _compiled(file: str, plain: bool, book: PriceBook | None = None) -> Path:
    from sundog.capacity.compile import compile_cluster, compiled_name

    target = compiled_name(file)
    text = compile_cluster(file, plain=plain, book=book).text
    if not target.is_file() or target.read_text() != text:
        _write(target, text)
    return target


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text)
    except OSError as error:
        raise ClusterError(
            f"{target} could not be written: {error.strerror}", "is its folder there, and yours?"
        ) from None


def _not_a_manifest(target: Path, verb: str) -> None:
    """`ray up` would read a manifest as a cluster file without a cluster."""
    from sundog.capacity.compiled import is_manifest

    if is_manifest(target):
        raise ClusterError(
            f"{target} is for Kubernetes: `ray` neither starts nor ends it",
            f"kubectl {verb} -f {target} (its token is a Secret of yours: docs/clusters.md)",
        )


def _ray(*arguments: str) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    code = subprocess.run([ray, *arguments], check=False).returncode
    if code:
        raise ClusterError(
            f"`ray {' '.join(arguments)}` ended with {code}",
            "its lines above say why; it can be run again",
        )
