"""sundog cost: what the nodes of a storage root cost, by run, node type or day."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sundog.cli.connection import RootOption, storage_root
from sundog.cli.output import Json, Output
from sundog.errors import SpecError


def register(app: typer.Typer) -> None:
    app.command()(cost)


def cost(
    by: Annotated[str, typer.Option("--by", help="run, node-type or day.")] = "day",
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Node-hours and dollars from the ledger. A node without a price counts hours, never a guess.

    Example: sundog cost --by node-type
    """
    from sundog.clock import WALL
    from sundog.ledger import cost as allocate
    from sundog.ledger import read_root
    from sundog.market.prices import cost_between

    if by not in ("run", "node-type", "day"):
        raise SpecError(f"--by {by}: cannot be allocated by that", "one of: run, node-type, day")
    out = Output(as_json)
    lines = allocate(read_root(storage_root(root)), by, WALL.now_s(), cost_between)  # type: ignore[arg-type]
    out.table(
        [by, "node-hours", "dollars"],
        [
            (x.key, f"{x.node_hours:.3f}", "no price" if x.usd is None else f"{x.usd:.2f}")
            for x in lines
        ],
        empty="nothing was bought yet: the ledger of this root is empty",
    )
    out.data([asdict(x) for x in lines])
