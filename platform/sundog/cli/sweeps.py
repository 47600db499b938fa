"""sundog sweep: submit a search, look at it, draw it, export it, register its winner."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sundog.cli import jobs
from sundog.cli.connection import RootOption, storage_root
from sundog.cli.output import Json, Output, duration
from sundog.clock import WALL
from sundog.errors import NotFound, RunError, SpecError

_REFRESH_S = 2.0
RunId = Annotated[str, typer.Argument(help="The sweep's run id, such as digits-sweep-1.")]


class SubmitByDefault(TyperGroup):
    """`sundog sweep SPEC` means `sundog sweep submit SPEC`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["submit", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=SubmitByDefault,
    help="Search the parameters of a run. `sundog sweep SPEC` submits one.",
    epilog="Example: sundog sweep jobs/specs/digits-sweep.yaml",
    no_args_is_help=True,
)
app.command("submit")(jobs.sweep)


def _sweep(root: str | None, run_id: str) -> Any:
    """(folder, record, spec, trials) of a sweep. NotFound, RunError when the run is none."""
    from sundog.runs import sweep_book
    from sundog.spec import SweepSpec
    from sundog.storage.runs import open_run

    folder = open_run(storage_root(root), run_id)
    record = folder.record()
    if record.get("kind") != "sweep":
        kind = record.get("kind") or "run that has not begun"
        raise RunError(f"{run_id} is no sweep: it is a {kind}", f"sundog runs show {run_id}")
    if not record.get("spec"):
        raise NotFound(f"{run_id} has not begun", f"sundog logs {run_id}")
    spec = SweepSpec.model_validate(record["spec"])
    book = sweep_book.read(folder)
    return folder, record, spec, sorted(book.trials.values(), key=lambda t: t.place)


@app.command()
def show(
    run_id: RunId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until it has ended.")] = False,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """The trials of a sweep: parameters, metric, rung, cost, state and why each stopped.

    Example: sundog sweep show digits-sweep-1 --watch
    """
    out = Output(as_json)
    while True:
        folder, record, spec, trials = _sweep(root, run_id)
        live = record.get("state") == "running" and folder.driver() is not None
        if watch and not as_json and sys.stdout.isatty():
            typer.echo("\033[H\033[2J", nl=False)
        _show(out, run_id, record, spec, trials, live)
        if not (watch and live):
            break
        WALL.sleep(_REFRESH_S)
    out.data({**record, "live": live, "trials": [t.row() for t in trials]})


def _show(
    out: Output, run_id: str, record: dict[str, Any], spec: Any, trials: list[Any], live: bool
) -> None:
    from sundog.runs.sweep_table import best_of, front, table

    state = str(record.get("state"))
    if state == "running" and not live:
        state = "its driver is gone: submit it again to go on"
    if live and record.get("paused_until_s"):
        state = "paused"  # until when is in its message
    began, ended = record.get("started_s"), record.get("ended_s")
    took = (ended or WALL.now_s()) - began if began else None
    parts = [
        run_id,
        state,
        duration(took),
        f"{record.get('step') or 0}/{record.get('steps')} trials",
    ]
    parts += [_spend(record, spec, live)]
    out.say(" · ".join(p for p in parts if p))
    if record.get("message"):
        out.say(f"  {record['message']}")
    best = best_of(trials, spec)
    for line in table(trials, best, spec):
        out.say(line)
    if spec.also:
        out.say(f"front of {', '.join(spec.objectives)}: "
                f"{', '.join(t.name for t in front(trials, spec))}")  # fmt: skip


def _spend(record: dict[str, Any], spec: Any, live: bool) -> str:
    if record.get("usd") is None:
        hours = record.get("node_hours")
        return "" if hours is None else f"{hours:.4f} node-hours (no price)"
    text = f"${record['usd']:.4f}"
    if record.get("unpriced_node_hours"):
        text += f" and {record['unpriced_node_hours']:.4f} node-hours without a price"
    text += f" of ${spec.max_usd:g}" if spec.max_usd is not None else ""
    if live and record.get("forecast_usd") is not None:
        text += f", about ${record['forecast_usd']:.4f} in the end"
    return text


@app.command()
def plot(
    run_id: RunId,
    to: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path(),
    png: Annotated[bool, typer.Option("--png", help="PNG instead of SVG.")] = False,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Draw a sweep: parallel coordinates, metric over dollars, importance, Pareto front.

    Example: sundog sweep plot digits-sweep-1 -o pictures
    """
    from sundog.runs import sweep_book, sweep_plots

    folder, _, spec, trials = _sweep(root, run_id)
    kind = "png" if png else "svg"
    made = sweep_plots.draw(spec, trials, sweep_book.entries(folder), to, kind)
    out = Output(as_json)
    for name, path in made.items():
        out.say(f"{name:<12}{path}")
    out.data(made)


@app.command()
def export(
    run_id: RunId,
    to: Annotated[Path, typer.Option("--out", "-o", help="A .csv or .parquet file.")],
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Write the trials as a table, one row each.

    Example: sundog sweep export digits-sweep-1 -o trials.parquet
    """
    from sundog.runs.sweep_table import write

    _, _, spec, trials = _sweep(root, run_id)
    if to.suffix not in (".csv", ".parquet"):
        raise SpecError(f"{to}: cannot be told what format", "end it in .csv or .parquet")
    write(trials, spec, to)
    out = Output(as_json)
    out.say(f"{len(trials)} trials → {to}")
    out.data({"path": str(to), "trials": len(trials)})


@app.command()
def promote(
    run_id: RunId,
    trial: Annotated[str | None, typer.Option(help="Another trial than the best.")] = None,
    name: Annotated[
        str | None, typer.Option("--as", help="The model's name; else the spec's.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="An alias to point at it.")] = None,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Register a sweep's winner as a model version. Run it where the recipe can be imported.

    Example: sundog sweep promote digits-sweep-1 --as digits --alias candidate
    """
    from sundog.runs.sweep import register_best
    from sundog.runs.sweep_table import best_of
    from sundog.spec.run import RegisterRule

    folder, record, spec, trials = _sweep(root, run_id)
    found = {t.name: t for t in trials}
    chosen = best_of(trials, spec) if trial is None else found.get(trial)
    if chosen is None:
        raise NotFound(
            f"{run_id} has no trial {trial!r}" if trial else f"no trial of {run_id} has reported",
            f"sundog sweep show {run_id}",
        )
    rule = spec.register_
    if name is not None:
        rule = RegisterRule.model_validate({"as": name, "alias": alias})
    elif rule is not None and alias is not None:
        rule = rule.model_copy(update={"alias": alias})
    if rule is None:
        raise SpecError("the sweep's spec registers nothing", "name the model: --as digits")
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        version = register_best(
            spec.model_copy(update={"register_": rule}), folder, record.get("data"), chosen
        )
    if version is None:
        raise RunError(f"{chosen.name} is not good enough for {rule.as_}: {rule.if_}", "try --as")
    if not record.get("model") and folder.driver() is None:
        folder.update(model=version.ref)
    Output(as_json).data({"model": version.ref, "trial": chosen.name, "metrics": chosen.metrics})
