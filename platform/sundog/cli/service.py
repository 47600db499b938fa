"""sundog service: one service in detail, and what its hardware can do."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sundog.cli.connection import RootOption, control, storage_root
from sundog.cli.connection import gateway as gateway_address
from sundog.cli.output import Json, Output, Yes, confirm
from sundog.clock import WALL
from sundog.errors import NotFound, SpecError
from sundog.serving.asking import own_key

if TYPE_CHECKING:
    from sundog.control.profiles import Proposal, ServiceProfile

app = typer.Typer(help="One service: its replicas and why, its profile.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The service.")]


def _row(name: str) -> dict[str, Any]:
    rows = control().services()
    row = next((r for r in rows if r["service"] == name), None)
    if row is None or row["version"] is None:
        known = ", ".join(r["service"] for r in rows) or "none"
        raise NotFound(f"no service {name!r} answers", f"deployed: {known}")
    return row


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Its version, how many replicas it has and why.

    Example: sundog service show digits
    """
    out, row = Output(as_json), _row(name)
    out.data(row)
    out.say(
        f"{name} · {row['state']} · {row['model']}, version {row['version']} · {row['gateway']}"
    )
    if row["message"]:
        out.say(f"  {row['message']}")
    wanted = "" if row["wanted"] is None else f", {row['wanted']} wanted: {row['scaling']}"
    out.say(f"  replicas {row['replicas']}{wanted}")


@app.command()
def profile(
    name: Name,
    slo: Annotated[
        str | None, typer.Option("--slo", help="The p99 to keep, such as 50ms; else 5 × idle p50.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests a second to propose replicas for.")
    ] = None,
    start: Annotated[float, typer.Option("--from", help="The first rate.", min=0.1)] = 10.0,
    most: Annotated[float, typer.Option("--to", help="The highest rate.")] = 5000.0,
    step: Annotated[float, typer.Option("--step", help="Seconds at each rate.", min=0.5)] = 4.0,
    usd_hour: Annotated[
        float | None, typer.Option("--usd-hour", help="What an hour of a replica costs.", min=0.0)
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it: .svg or .png.")] = None,
    yes: Yes = False,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Drive a service with a rising load until it no longer keeps up; keep what was found.

    The profile lies beside the model version; the scaler starts from it. Run it against a copy of a
    service that people use: the last rates are more than it can take.

    Example: sundog service profile digits --slo 50ms --rate 200 --plot digits.svg
    """
    from sundog.control import profiles
    from sundog.spec.quantity import parse_duration_s

    out, row = Output(as_json), _row(name)
    try:
        limit_s = parse_duration_s(slo) if slo else None
    except ValueError as error:
        raise SpecError(f"--slo: {error}") from None
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise SpecError(f"--plot {plot}: a picture ends in .svg or .png")
    confirm(f"Load {name} until it no longer keeps up?", yes)
    found = profiles.measure(
        gateway_address(), row, limit_s=limit_s, start_rate=start, most_rate=most, step_s=step,
        clock=WALL, machine=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        key=own_key(),
    )  # fmt: skip
    profiles.keep(storage_root(root), found)
    out.table(
        ["rate/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "failed"],
        [
            (f"{p.rate:.4g}", f"{p.answered:.4g}", *(f"{1000 * t:.3g}" for t in
             (p.p50_s, p.p95_s, p.p99_s)), p.failed)
            for p in found.points
        ],
        "",
    )  # fmt: skip
    started = "" if found.startup_s is None else f", a replica starts in {found.startup_s:.1f} s"
    out.say(
        f"one call takes {1000 * found.service_s:.3g} ms; {found.replicas} replica(s) keep up with "
        f"{found.knee_rate:.4g}/s within {1000 * found.limit_s:.3g} ms{started}"
    )
    wanted = rate if rate is not None else found.knee_rate
    proposal = profiles.propose(found, wanted, limit_s, usd_hour)
    out.say(
        f"for {wanted:.4g}/s: replicas: {proposal.replicas}, batch: {proposal.batch} "
        f"({proposal.why}); {_cost(proposal)}"
    )
    if plot is not None:
        draw(found, plot)
        out.say(f"drawn: {plot}")
    out.data({**found.document(), "proposal": asdict(proposal)})


def _cost(proposal: Proposal) -> str:
    hours = f"{proposal.replica_hours_day:.0f} replica-hours a day"
    if proposal.usd_day is None:
        return f"{hours} (--usd-hour makes dollars of them)"
    return f"{hours}, ${proposal.usd_day:.2f}"


def draw(found: ServiceProfile, path: Path) -> None:
    """Latency over rate with the knee, and the time of a call over its rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    rates = [p.rate for p in found.points]
    for word, colour in (("p50", "#2a7f62"), ("p95", "#5b7db1"), ("p99", "#c05746")):
        values = [1000 * getattr(p, f"{word}_s") for p in found.points]
        left.plot(rates, values, "o-", color=colour, label=word, markersize=3)
    left.axvline(found.knee_rate, color="#22313f", linestyle=":", label="knee")
    left.axhline(1000 * found.limit_s, color="#b0b0b0", linestyle="--", label="limit")
    left.set(xlabel="requests a second", ylabel="latency, ms", xscale="log", yscale="log")
    left.legend(fontsize=8)
    rows = sorted(found.batches)
    right.plot(rows, [1000 * found.batches[r] for r in rows], "o-", color="#2a7f62", markersize=3)
    right.set(xlabel="rows in a call", ylabel="time of the call, ms")
    right.set_ylim(bottom=0)
    figure.suptitle(
        f"{found.model}@{found.version} on {found.replicas} replica(s), {found.machine}"
    )
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
