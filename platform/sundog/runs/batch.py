"""Batch inference on Ray Data: a registered model over Parquet, its answers as Parquet.

Drives: every piece of the data is answered once, also when the job is killed and submitted again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sundog.clock import WALL
from sundog.errors import NotFound, RunError, SundogError
from sundog.runs import place
from sundog.runs.batch_pieces import Piece, cut, digest, list_row_groups
from sundog.runs.batch_worker import Answers, Work
from sundog.runs.driver import driving, interruptible, say
from sundog.security.secrets import secret_environment
from sundog.spec.base import split_reference
from sundog.spec.batch import BatchSpec
from sundog.storage.root import Root, open_root
from sundog.storage.runs import RunFolder

if TYPE_CHECKING:
    from sundog.storage.models import ModelVersion, Registry

_PRINT_EVERY_S = 2.0


@dataclass(frozen=True)
class Answered:
    run_id: str
    rows: int
    output: str
    seconds: float


def run_batch(spec: BatchSpec, folder: RunFolder) -> Answered:
    """Answer every row that is not answered yet, write the result, say how fast it was."""
    with driving(folder, "batch") as done:
        before = folder.record()
        work, pieces, name = _plan(spec, folder, before)
        resources = _resources(spec)
        place.check_reach(folder.root)
        place.check_fit(spec.workers.low, resources)
        plan = digest(pieces, model=work.version.ref, columns=work.columns, keep=spec.keep)
        finished = _finished(work, pieces, plan, before.get("plan"))
        folder.update(
            model=work.version.ref, data=name, plan=plan, spec=spec.model_dump(mode="json"),
            output=_url(work), steps=sum(piece.rows for piece in pieces),
        )  # fmt: skip
        todo = [piece for piece in pieces if piece.name not in finished]
        workers = spec.workers.clamp(max(1, place.capacity(resources) - 1))
        say(folder, f"{folder.run_id} · {work.version.ref} over {name} · {workers} at once")
        if finished:
            say(folder, f"{len(finished)} of {len(pieces)} pieces are answered already")
        began = WALL.monotonic_s()
        interruptible(lambda: _answer(work, todo, workers), folder.check_lease)
        seconds = max(WALL.monotonic_s() - began, 1e-9)
        rows, now = sum(p.rows for p in pieces), sum(p.rows for p in todo)
        done |= {
            "step": rows, "steps": rows, "workers": workers,
            "metrics": {"rows": rows, "rows_s": now / seconds},
        }  # fmt: skip
        say(folder, f"{rows:,} rows · {now / seconds:,.0f} rows/s · {_url(work)}")
    return Answered(folder.run_id, rows, _url(work), seconds)


def _plan(
    spec: BatchSpec, folder: RunFolder, before: dict[str, Any]
) -> tuple[Work, list[Piece], str]:
    from sundog.storage.models import Registry

    version = _pinned(Registry(folder.root), spec, before.get("model"))
    source, paths, name = _source(folder.root, spec, before.get("data"))
    files, schema = list_row_groups(source, paths)
    columns = {t.name: spec.inputs.get(t.name, t.name) for t in version.signature.inputs}
    missing = [c for c in [*columns.values(), *spec.keep] if c not in schema.names]
    if missing:
        raise RunError(
            f"the data has no column {', '.join(missing)}, only {', '.join(schema.names)}",
            "say which column is which input: inputs: {model_input: column}",
        )
    clash = sorted(set(spec.keep) & {t.name for t in version.signature.outputs})
    if clash:
        raise RunError(
            f"keep: {', '.join(clash)} is also what the model answers", "take it out of keep"
        )
    target = open_root(spec.output) if spec.output else folder.root
    work = Work(
        spec, folder, version, columns, source, target, "" if spec.output else folder.key("output"),
        secret_environment(spec), place.working_directory(),
    )  # fmt: skip
    return work, cut(files, spec.rows), name


def _pinned(registry: Registry, spec: BatchSpec, before: str | None) -> ModelVersion:
    """The version that this job began with: an alias that moved since does not mix two models."""
    name, word = split_reference(spec.model)
    same = before is not None and split_reference(before)[0] == name and not word.isdigit()
    return registry.get(before if same and before is not None else spec.model)


def _source(root: Root, spec: BatchSpec, before: str | None) -> tuple[Any, list[str], str]:
    """The Parquet files to read: of a dataset's splits, or of a URL or a path."""
    from sundog.runs.train import pin_data
    from sundog.storage.datasets import open_dataset

    if "://" in spec.data or spec.data.startswith("/"):
        folder, _, last = spec.data.rstrip("/").rpartition("/")
        place_ = open_root(folder)
        filesystem, base = place_.filesystem()
        if not place_.exists(last) and not place_.children(last):
            raise NotFound(
                f"data: {spec.data} is not there", "give a Parquet file or a folder of them"
            )
        return filesystem, [f"{base}/{last}"], spec.data
    dataset = open_dataset(root, pin_data(root, spec, before) or spec.data)
    filesystem, base = root.filesystem()
    splits = [spec.split] if spec.split else list(dataset.splits)
    files = [f"{base}/{file}" for split in splits for file in dataset.split(split).files]
    return filesystem, files, dataset.ref


def _finished(work: Work, pieces: Sequence[Piece], plan: str, before: str | None) -> set[str]:
    """Pieces that an earlier driver of this job finished. RunError for somebody else's results."""
    there = {n for n in work.target.children(work.key) if n.endswith(".parquet")}
    if not there or before == plan:
        return there & {piece.name for piece in pieces}
    if before is None:
        raise RunError(
            f"output: {_url(work)} holds {len(there)} Parquet files already",
            "give a folder of its own, or leave output out",
        )
    raise RunError(
        f"{work.folder.run_id} began with another model, data or columns, and has "
        f"{len(there)} pieces of that",
        "start the changed job under a new --run-id",
    )


def _url(work: Work) -> str:
    return f"{work.target.url}/{work.key}".rstrip("/")


def _resources(spec: BatchSpec) -> dict[str, float]:
    out = {"CPU": float(spec.resources.cpus), "GPU": float(spec.resources.gpus)}
    return {name: each for name, each in out.items() if each}


def _answer(work: Work, pieces: Sequence[Piece], workers: int) -> None:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    if not pieces:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    spec = work.spec
    remote: dict[str, Any] = {}
    if spec.requirements:
        remote["runtime_env"] = {"pip": list(spec.requirements)}
    if spec.resources.gpu:
        remote["accelerator_type"] = spec.resources.gpu
    # A block a piece: that is the unit in which work is handed out, and done again when lost.
    done = ray.data.from_items(
        [asdict(piece) for piece in pieces], override_num_blocks=len(pieces)
    ).map_batches(
        Answers, fn_constructor_args=(work,), batch_size=1, batch_format="numpy",
        num_cpus=spec.resources.cpus, num_gpus=spec.resources.gpus or None,
        compute=ActorPoolStrategy(min_size=min(spec.workers.low or 1, workers), max_size=workers),
        **remote,
    )  # fmt: skip
    try:
        _follow(work.folder, (row["rows"] for row in done.iter_rows()), pieces)
    except ray.exceptions.RayError as error:
        raise _told(error) from None


def _follow(folder: RunFolder, answered: Iterator[int], pieces: Sequence[Piece]) -> None:
    total, rows, told_s = sum(p.rows for p in pieces), 0, WALL.monotonic_s()
    began_s = told_s
    for count in answered:
        rows += int(count)
        now_s = WALL.monotonic_s()
        if now_s - told_s >= _PRINT_EVERY_S and rows < total:
            told_s, rate = now_s, rows / (now_s - began_s)
            left_s = (total - rows) / rate
            say(
                folder, f"{rows:,}/{total:,} rows · {rate:,.0f} rows/s · about {left_s:,.0f} s left"
            )
            folder.update(metrics={"rows": rows, "rows_s": rate})


def _told(error: Exception) -> SundogError:
    """Ray's error holds the worker's: ours is passed on, anything else becomes one line."""
    cause: Any = error
    while cause is not None:
        if isinstance(cause, SundogError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return RunError(f"a batch failed: {lines[-1].strip()}", "try fewer rows in a call (rows: 64)")
