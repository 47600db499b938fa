"""sundog cost: what nodes cost, by run, node type or day, from a storage root or a cluster's own ledger."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sundog.cli.connection import RootOption, storage_root
from sundog.cli.output import Json, Output
from sundog.errors import ClusterError, SpecError

if TYPE_CHECKING:
    from sundog.ledger import By, Line


def register(app: typer.Typer) -> None:
    app.command()(cost)


def cost(
    by: Annotated[str, typer.Option("--by", help="run, node-type or day.")] = "day",
    root: RootOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="SPEC",
            help="Only this cluster; without a root, its head is asked.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Node-hours and dollars from the ledger. A node without a price counts hours, never a guess.

    Example: sundog cost --by node-type --cluster cluster-configs/specs/aws-train.yaml
    """
    if by not in ("run", "node-type", "day"):
        raise SpecError(f"--by {by}: cannot be allocated by that", "one of: run, node-type, day")
    out = Output(as_json)
    lines = _of_cluster(cluster, by, root) if cluster else _of_root(by, root)  # type: ignore[arg-type]
    out.table(
        [by, "node-hours", "dollars"],
        [
            (x.key, f"{x.node_hours:.3f}", "no price" if x.usd is None else f"{x.usd:.2f}")
            for x in lines
        ],
        empty="nothing was bought yet: this ledger is empty. A cluster whose spec has no root keeps "
        "its own: sundog cost --cluster SPEC",
    )
    out.data([asdict(x) for x in lines])


def _of_root(by: By, root: str | None, cluster: str | None = None) -> list[Line]:
    from sundog.clock import WALL
    from sundog.ledger import cost as allocate
    from sundog.ledger import read_root
    from sundog.market.prices import cost_between

    entries = read_root(storage_root(root))
    mine = (e for e in entries if cluster in (None, e.cluster))
    return allocate(mine, by, WALL.now_s(), cost_between)


def _of_cluster(file: str, by: By, root: str | None) -> list[Line]:
    from sundog.capacity.check import read_spec
    from sundog.cli.cluster_nodes import head_of
    from sundog.ledger import Line

    spec = read_spec(file).spec
    if root or spec.root:
        return _of_root(by, root or spec.root, spec.cluster)
    said = head_of(file).ask("cost", spec.cluster, "--by", by)
    if "error" in said:
        raise ClusterError(str(said["error"]), str(said.get("fix", "")))
    return [Line(**row) for row in said["cost"]]
