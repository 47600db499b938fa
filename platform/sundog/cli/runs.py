"""sundog runs, logs, gc: what ran, what it said, what it left."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sundog.cli.connection import RootOption, storage_root
from sundog.cli.output import Json, Output, Yes, age, confirm, duration
from sundog.clock import WALL
from sundog.errors import NotFound, RunError, SpecError
from sundog.telemetry import RUN_PROGRESS

app = typer.Typer(help="Runs, sweeps and batch jobs.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run's id, such as digits-3.")]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="runs")
    root.command()(logs)
    root.command()(gc)


def _folder(root: str | None, run_id: str) -> Any:
    from sundog.storage.runs import open_run

    return open_run(storage_root(root), run_id)


@app.command("list")
def list_all(root: RootOption = None, as_json: Json = False) -> None:
    """Every run, the newest first.

    Example: sundog runs list
    """
    from sundog.storage.runs import list_runs

    out, now = Output(as_json), WALL.now_s()
    records = sorted(
        list_runs(storage_root(root)), key=lambda r: r.get("started_s") or 0, reverse=True
    )
    out.data(records)
    out.table(
        ["run", "kind", "state", "progress", "metrics", "took", "age"],
        [
            (
                r["run_id"], r.get("kind"), r.get("state"), _progress(r), _metrics(r),
                duration(_took(r, now)), age(now - r["started_s"]) if r.get("started_s") else "",
            )
            for r in records
        ],
        "no runs yet; start one: sundog train jobs/specs/digits.yaml",
    )  # fmt: skip


def _progress(record: dict[str, Any]) -> str:
    if record.get("steps"):
        return f"{record.get('step') or 0:,}/{record['steps']:,}"
    return ""


def _metrics(record: dict[str, Any]) -> str:
    metrics = record.get("metrics") or {}
    return " · ".join(f"{k} {v:.4g}" for k, v in sorted(metrics.items()) if isinstance(v, float))


def _took(record: dict[str, Any], now_s: float) -> float | None:
    if not record.get("started_s"):
        return None
    return float(record.get("ended_s") or now_s) - float(record["started_s"])


@app.command()
def show(run_id: RunId, root: RootOption = None, as_json: Json = False) -> None:
    """One run: state, progress, metrics, what happened to it.

    Example: sundog runs show digits-3
    """
    folder, out = _folder(root, run_id), Output(as_json)
    record, events = folder.record(), folder.events()
    out.data({**record, "events": events})
    head = [run_id, str(record.get("state")), duration(_took(record, WALL.now_s()))]
    if record.get("steps"):
        head.append(f"step {_progress(record)}")
    if record.get("workers"):
        head.append(f"{record['workers']} workers")
    if record.get("state") == "running":
        head += _speed(record)
    out.say(" · ".join(part for part in head if part))
    if record.get("message"):
        out.say(f"  {record['message']}")
    shown = {
        "metrics": _metrics(record), "data": record.get("data"), "model": record.get("model"),
        "from": record.get("init_from"), "goodput": _goodput(record), "cost": _cost(record),
    }  # fmt: skip
    for key, value in shown.items():
        if value:
            out.say(f"{key:<10}{value}")
    for event in [e for e in events if e.get("event") != RUN_PROGRESS][-20:]:
        details = " · ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in event.items() if k not in ("at_s", "event", "format")
        )  # fmt: skip
        out.say(f"  {event.get('event', ''):<22}{details}")


def _speed(record: dict[str, Any]) -> list[str]:
    out = []
    if record.get("tokens_s"):
        out.append(f"{record['tokens_s']:,.0f} tokens/s")
    elif record.get("samples_s"):
        out.append(f"{record['samples_s']:,.0f} samples/s")
    if record.get("mfu"):
        out.append(f"MFU {100 * record['mfu']:.1f}%")
    if record.get("eta_s"):
        out.append(f"{duration(record['eta_s'])} to go")
    return out


def _goodput(record: dict[str, Any]) -> str:
    """`94.1% · startup 1.2 ($0.03) · restart 1.9 ($0.05)`: the useful share of node-seconds, the rest
    by name with its dollars."""
    if not record.get("goodput"):
        return ""
    usd = record.get("account_usd") or {}
    losses = [
        f"{n} {100 * v:.1f}" + (f" (${usd[n]:.2f})" if usd.get(n) else "")
        for n, v in (record.get("losses") or {}).items()
        if v > 5e-4
    ]
    return " · ".join([f"{100 * record['goodput']:.1f}%", *losses])


def _cost(record: dict[str, Any]) -> str:
    """Dollars so far, and in all at the present speed; node-hours where nodes have no price."""
    hours, usd, eta_s = record.get("node_hours"), record.get("usd"), record.get("eta_s")
    if not hours:
        return ""
    if not usd:
        return f"{hours:.3f} node-hours (its nodes have no price)"
    text = f"${usd:.2f}, {hours:.2f} node-hours"
    if record.get("state") == "running" and eta_s and record.get("placed"):
        nodes = len({worker["node_id"] for worker in record["placed"]})
        text += f" so far, about ${usd + usd / hours * nodes * eta_s / 3600:.2f} in all"
    return text


@app.command()
def verify(run_id: RunId, root: RootOption = None, as_json: Json = False) -> None:
    """Prove what a run consumed: no sample lost, none twice, among the committed steps.

    Example: sundog runs verify digits-3
    """
    from sundog.runs.verify import line
    from sundog.runs.verify import verify as check

    out = Output(as_json)
    verdict = check(storage_root(root), run_id)
    out.say(line(verdict))
    for fault in verdict.faults:
        out.say(f"  {fault}")
    out.data({**asdict(verdict), "good": verdict.good})
    if not verdict.good:
        raise typer.Exit(1)


@app.command()
def plot(
    run_id: RunId,
    to: Annotated[
        Path | None, typer.Option("-o", "--out", help="The picture: .svg, .png or .pdf.")
    ] = None,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Draw a run: its loss, workers and goodput, and what every stage cost in seconds and dollars.

    Example: sundog runs plot digits-3 -o digits-3.svg
    """
    from sundog.runs.plot import draw, read

    folder, out = _folder(root, run_id), Output(as_json)
    path = to or Path(f"{run_id}.svg")
    story = read(folder)
    draw(story, path)
    out.say(f"{path} · {len(story.points)} points, {len(story.changes)} changes of the group")
    out.data({"run_id": run_id, "path": str(path), "points": len(story.points)})


@app.command()
def cancel(run_id: RunId, yes: Yes = False, root: RootOption = None, as_json: Json = False) -> None:
    """Stop a run. Its checkpoints stay; the same run id goes on from there.

    Example: sundog runs cancel digits-3
    """
    from sundog.cli.connection import cluster
    from sundog.runs import client

    folder, out = _folder(root, run_id), Output(as_json)
    record = folder.record()
    if record.get("state") not in ("queued", "running"):
        raise RunError(f"{run_id} is not running: it is {record.get('state')}", "nothing to cancel")
    job_id = record.get("job_id")
    if not job_id:
        raise RunError(
            f"{run_id} was not started as a Ray job, so there is nothing to ask to stop",
            f"stop the process that runs it ({record.get('holder') or 'none yet'})",
        )
    confirm(f"Cancel {run_id}?", yes)
    client.cancel(job_id, address=cluster().dashboard)
    if folder.driver() is None and folder.record().get("state") == "running":
        # Its driver was killed before it could say how it ended.
        folder.update(state="cancelled", ended_s=WALL.now_s(), message=f"{run_id} was cancelled")
    out.say(f"cancelled {run_id}; resume it with --run-id {run_id}")
    out.data({"run_id": run_id, "job_id": job_id, "state": "cancelled"})


@app.command()
def delete(run_id: RunId, yes: Yes = False, root: RootOption = None, as_json: Json = False) -> None:
    """Delete a run's folder, checkpoints and logs. Models it registered stay.

    Example: sundog runs delete digits-3
    """
    from sundog.storage.runs import delete_run

    folder, out = _folder(root, run_id), Output(as_json)
    if folder.driver():
        raise RunError(f"{run_id} is running", f"first: sundog runs cancel {run_id}")
    confirm(f"Delete {run_id}, with its checkpoints and logs?", yes)
    delete_run(storage_root(root), run_id)
    out.say(f"deleted {run_id}")
    out.data({"deleted": run_id})


def logs(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it writes.")] = False,
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank", help="Only this worker (its number) or trial; else the driver and all."
        ),
    ] = None,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """What a run printed, from the storage root: also after its nodes are gone.

    Example: sundog logs digits-3 --follow --rank 0
    """
    folder = _folder(root, run_id)
    seen = 0
    for line in folder.logs(rank, follow=follow):
        seen += 1
        if as_json:
            print(json.dumps({"run_id": run_id, "line": line}), flush=True)
        else:
            print(line, flush=True)
    if not seen:
        raise NotFound(
            f"{run_id} has no logs" + (f" of rank {rank}" if rank is not None else ""),
            f"look at it with: sundog runs show {run_id}",
        )


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than: Annotated[
        str, typer.Option(help="Leave what is younger: it may be on its way.")
    ] = "1d",
    yes: Yes = False,
    root: RootOption = None,
    as_json: Json = False,
) -> None:
    """Remove what no manifest names: blobs of uploads that never finished.

    Example: sundog gc --dry-run
    """
    from sundog.spec.quantity import parse_duration_s
    from sundog.storage import gc as collector

    out, where = Output(as_json), storage_root(root)
    try:
        age_s = parse_duration_s(older_than)
    except ValueError as error:
        raise SpecError(f"--older-than: {error}") from None
    found = collector.orphans(where, older_than_s=age_s)
    total = sum(entry.size for entry in found)
    for entry in found:
        out.say(f"  {entry.key}  {entry.size:,} bytes · {entry.why}")
    removed = 0
    if found and not dry_run:
        confirm(f"Remove {len(found)} files, {total:,} bytes?", yes)
        removed = len(collector.collect(where, older_than_s=age_s))
    out.say(
        "nothing to remove" if not found
        else f"{len(found)} files, {total:,} bytes " + ("would go" if dry_run else "removed")
    )  # fmt: skip
    out.data({"orphans": [e.key for e in found], "bytes": total, "removed": removed})
