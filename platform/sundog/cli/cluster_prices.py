"""sundog cluster prices: today's prices and machines from your own cloud account, for plan and compile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sundog.cli.output import Json, Output
from sundog.errors import ClusterError, NotFound

if TYPE_CHECKING:
    from sundog.market.prices import PriceBook

Prices = Annotated[
    Path | None,
    typer.Option(
        "--prices", help="Prices that `sundog cluster prices` saved; else the snapshot's."
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(prices)


def book(path: Path | None) -> PriceBook | None:
    """The snapshot with the saved prices over it; None without a file."""
    from sundog.market.saved import book_with

    if path is None:
        return None
    if not path.is_file():
        raise NotFound(
            f"{path}: no such price file", f"make it: sundog cluster prices SPEC -o {path}"
        )
    return book_with(path)


def prices(
    file: Annotated[
        str, typer.Argument(help="A cluster spec: its region and shapes are asked for.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to replace.")],
    as_json: Json = False,
) -> None:
    """Read today's prices for a spec's region and shapes with your own credentials. Buys nothing.

    Example: sundog cluster prices cluster-configs/specs/aws-train.yaml -o prices.json
    """
    from sundog.capacity.account import covered, today
    from sundog.market.prices import snapshot
    from sundog.market.saved import save_prices

    out = Output(as_json)
    asked = today(file)
    found = asked.prices
    if not found:
        raise ClusterError(
            "the cloud named no price for any of these shapes", "is the region right?"
        )
    taken, refused = covered(found, snapshot(), asked.shapes)
    save_prices(found, output, asked.shapes)
    spot = sum(p.market == "spot" for p in found)
    out.say(f"{output}: {spot} spot and {len(found) - spot} on-demand prices of today")
    if asked.shapes:
        names = ", ".join(sorted(s.name for s in asked.shapes))
        out.say(f"new since this Sundog: {names}")
    if asked.why_no_shapes:
        out.say(f"which machines are new is not known: {asked.why_no_shapes}")
    for reason in refused:
        out.say(f"will not be used: {reason}")
    out.say(f"use them: sundog cluster plan {file} --prices {output}")
    out.data({"file": str(output), "spot": spot, "on_demand": len(found) - spot, "taken": taken,
              "refused": refused, "shapes": [s.name for s in asked.shapes]})  # fmt: skip
