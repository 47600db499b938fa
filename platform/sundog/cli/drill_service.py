"""sundog drill service: kill a replica or the gateway of a live service, and what callers notice."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sundog.cli.connection import control
from sundog.cli.connection import gateway as gateway_address
from sundog.cli.output import Json, Output, Yes, confirm
from sundog.errors import NotFound, SpecError
from sundog.serving.asking import own_key


def register(app: typer.Typer) -> None:
    app.command("service")(service)


def service(
    name: Annotated[str, typer.Argument(help="A service that answers.")],
    replica: Annotated[bool, typer.Option("--replica", help="A replica. The default.")] = False,
    gateway: Annotated[bool, typer.Option("--gateway", help="The gateway itself.")] = False,
    rate: Annotated[
        float, typer.Option(help="Requests a second that the drill sends meanwhile.", min=1)
    ] = 50,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """One real kill under load, and its receipt: failed requests, the longest gap, seconds.

    With keys in use, SUNDOG_API_KEY is what the drill's own requests carry.

    Example: sundog drill service digits --replica
    """
    from sundog.control import drills

    if replica and gateway:
        raise SpecError("--replica and --gateway: one fault at a time", "choose one of them")
    what = "gateway" if gateway else "replica"
    out, address, client = Output(as_json), gateway_address(), control()
    row = next((r for r in client.services() if r["service"] == name), None)
    if row is None or row["version"] is None:
        raise NotFound(f"no service {name!r} answers", "`sundog services` lists them")
    confirm(
        f"Kill {'the gateway' if gateway else f'a replica of {name}'} for real, "
        f"under {rate:g} requests a second and whatever else comes?", yes
    )  # fmt: skip
    key = own_key()
    receipt = drills.drill(address, name, what, rate, str(row["version"]), key)
    back = "not within 90 s" if receipt.back_s is None else f"after {receipt.back_s:.1f} s"
    why = ", ".join(f"{count} {word}" for word, count in receipt.failures.items())
    out.say(
        f"killed a {what} of {name}: {receipt.failed} of {receipt.sent} requests failed"
        f"{f' ({why})' if why else ''}\n"
        f"  the longest time without an answer was {receipt.longest_gap_s:.2f} s; "
        f"all replicas were back {back}"
    )
    out.data(asdict(receipt))
    if receipt.back_s is None:
        raise typer.Exit(1)
