"""train, sweep, batch, ingest: inside a Ray job they run; typed in a shell they submit one."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from sundog import spec as specs
from sundog.cli.connection import cluster
from sundog.cli.output import Json, Output
from sundog.errors import SpecError, SundogError
from sundog.rayapi.cluster import quiet
from sundog.rayapi.local import Endpoints

SpecFile = Annotated[str, typer.Argument(help="The spec (YAML).")]
RunId = Annotated[
    str | None, typer.Option("--run-id", help="Resume this run, or give a new one its id.")
]
Root = Annotated[str | None, typer.Option("--root", help="Storage root, over the spec's.")]
WorkingDir = Annotated[
    Path, typer.Option("--working-dir", help="Folder that is shipped to the cluster.")
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Submit and return at once.")]


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(batch)
    app.command()(ingest)


def _of_spec(kind: str, model: Any, does: str, example: str) -> Callable[..., None]:
    """The command of a job that a spec describes: all of them take the same options."""

    def command(
        file: SpecFile, run_id: RunId = None, root: Root = None,
        working_dir: WorkingDir = Path(), detach: Detach = False, as_json: Json = False,
    ) -> None:  # fmt: skip
        _job(kind, file, model, run_id, root, working_dir, detach, as_json)

    command.__name__ = kind
    command.__doc__ = f"{does}\n\nExample: {example}"
    return command


train = _of_spec(
    "train", specs.RunSpec, "Train what a run spec says.", "sundog train jobs/specs/digits.yaml"
)
sweep = _of_spec(
    "sweep", specs.SweepSpec,
    "Search the parameters that a sweep spec says.\n\n`submit` may be left out.",
    "sundog sweep submit jobs/specs/digits-sweep.yaml",
)  # fmt: skip
batch = _of_spec(
    "batch", specs.BatchSpec, "Run a registered model over a Parquet data set.",
    "sundog batch jobs/specs/digits-batch.yaml",
)  # fmt: skip


def ingest(
    name: Annotated[str, typer.Argument(help="The data set's name; `digits` alone is built in.")],
    source: Annotated[
        str | None, typer.Argument(help="A Parquet or CSV file, or a folder with one per split.")
    ] = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Write a data set once, as Parquet, into the storage root.

    Example: sundog ingest digits
    Example: sundog ingest flowers ./flowers-by-split/
    """
    from sundog.cli.connection import storage_root
    from sundog.runs import jobs
    from sundog.storage.datasets import open_dataset

    where = storage_root(root)
    arguments = [name, *([source] if source else []), "--root", where.url]
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        code = _code(jobs.ingest, arguments)
    if code == 0 and as_json:
        data = open_dataset(where, name)
        rows = {split: found.rows for split, found in data.splits.items()}
        Output(as_json).data({"data": data.ref, "rows": rows})
    raise typer.Exit(code)


def _code(entry: Any, arguments: list[str]) -> int:
    try:
        return int(entry(arguments) or 0)
    except SystemExit as stop:
        return int(stop.code or 0)


def inside_a_ray_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _job(
    kind: str, file: str, model: Any, run_id: str | None, root: str | None,
    working_dir: Path, detach: bool, as_json: bool,
) -> None:  # fmt: skip
    options = [file]
    options += ["--run-id", run_id] if run_id else []
    options += ["--root", root] if root else []
    if inside_a_ray_job():
        from sundog.runs import jobs

        raise typer.Exit(_code(getattr(jobs, kind), options))
    where = working_dir.resolve()
    if not where.is_dir():
        raise SpecError(
            f"--working-dir {working_dir}: there is no such folder", "name the folder to ship"
        )
    inside = where / file
    if not inside.resolve().is_relative_to(where):
        raise SpecError(
            f"{file} lies outside the working directory {where}, so the cluster would not see it",
            "run this from a folder above the spec, or give --working-dir",
        )
    # A typo is found here, before anything is shipped.
    spec = specs.load(inside, model)
    requirements = getattr(spec.run if kind == "sweep" else spec, "requirements", ())
    wanted = root or (spec.run if kind == "sweep" else spec).root
    raise typer.Exit(_submit(kind, options, where, requirements, detach, wanted, Output(as_json)))


def _submit(
    kind: str, options: list[str], working_dir: Path, requirements: tuple[str, ...],
    detach: bool, root: str | None, out: Output,
) -> int:  # fmt: skip
    from sundog.runs import client

    quiet()
    found = cluster()
    entrypoint = f"python -m sundog {kind} {shlex.join(options)}"
    job_id = client.submit(
        entrypoint, address=found.dashboard, working_dir=str(working_dir), requirements=requirements
    )
    out.say(f"submitted {job_id}: {entrypoint}")
    if detach:
        out.say(f"follow it: ray job logs --follow {job_id}")
        out.data({"job_id": job_id, "state": "PENDING"})
        return 0
    try:
        for line in client.follow(job_id, address=found.dashboard):
            out.say(line)
    except KeyboardInterrupt:
        out.say(f"\n{job_id} goes on; stop it with: ray job stop {job_id}")
        return 130
    about = _run_of(job_id, found, root)
    out.data({"job_id": job_id, "state": "SUCCEEDED", **about})
    return 0


def _run_of(job_id: str, found: Endpoints, root: str | None) -> dict[str, Any]:
    """The run that the job drove, where its storage root is within reach of this command."""
    from sundog.storage.root import open_root
    from sundog.storage.runs import list_runs

    try:
        where = root or found.root
        records = list_runs(open_root(where)) if where else []
    except SundogError:
        return {}
    mine = next((r for r in records if r.get("job_id") == job_id), None)
    return {k: mine.get(k) for k in ("run_id", "model", "metrics")} if mine else {}
