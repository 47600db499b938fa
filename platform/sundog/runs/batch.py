"""Batch inference on Ray Data: a registered model over Parquet, its answers as Parquet.

Loads the model without its training code. Parquet in, Parquet out; nothing is served here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sundog.clock import WALL
from sundog.errors import NotFound, RunError, SundogError
from sundog.runs import place
from sundog.runs.driver import driving, interruptible, say
from sundog.spec.batch import BatchSpec
from sundog.storage.root import Root, open_root
from sundog.storage.runs import RunFolder

if TYPE_CHECKING:
    from sundog.storage.models import ModelVersion
    from sundog.storage.signature import Signature


@dataclass(frozen=True)
class Answered:
    run_id: str
    rows: int
    output: str
    seconds: float


def run_batch(spec: BatchSpec, folder: RunFolder) -> Answered:
    """Answer every row, write the result, say how fast it was."""
    from sundog.storage.models import Registry

    with driving(folder, "batch") as done:
        version = Registry(folder.root).get(spec.model)
        filesystem, paths, name = _source(folder.root, spec)
        resources = {"CPU": float(spec.resources.cpus)}
        place.check_reach(folder.root)
        place.check_fit(spec.workers.low, resources)
        folder.update(model=version.ref, data=name, spec=spec.model_dump(mode="json"))
        workers = spec.workers.clamp(max(1, place.capacity(resources) - 1))
        say(folder, f"{folder.run_id} · {version.ref} over {name} · {workers} at once")
        began = WALL.monotonic_s()
        output, rows = interruptible(
            lambda: _answer(spec, folder, version, filesystem, paths, workers)
        )
        seconds = WALL.monotonic_s() - began
        done |= {
            "output": output, "step": rows, "steps": rows, "workers": workers,
            "metrics": {"rows": rows, "rows_s": rows / seconds},
        }  # fmt: skip
        say(folder, f"{rows:,} rows · {rows / seconds:,.0f} rows/s · {output}")
    return Answered(folder.run_id, rows, output, seconds)


def _source(root: Root, spec: BatchSpec) -> tuple[Any, list[str], str]:
    """The Parquet files to read: of a dataset's splits, or of a URL or a path."""
    from sundog.storage.datasets import open_dataset

    if "://" in spec.data or spec.data.startswith("/"):
        folder, _, last = spec.data.rpartition("/")
        place_ = open_root(folder)
        filesystem, base = place_.filesystem()
        if not place_.exists(last) and not place_.children(last):
            raise NotFound(
                f"data: {spec.data} is not there", "give a Parquet file or a folder of them"
            )
        return filesystem, [f"{base}/{last}"], spec.data
    dataset = open_dataset(root, spec.data)
    filesystem, base = root.filesystem()
    splits = [spec.split] if spec.split else list(dataset.splits)
    files = [f"{base}/{file}" for split in splits for file in dataset.split(split).files]
    return filesystem, files, dataset.ref


def _answer(
    spec: BatchSpec,
    folder: RunFolder,
    version: ModelVersion,
    filesystem: Any,
    paths: list[str],
    workers: int,
) -> tuple[str, int]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    target = open_root(spec.output) if spec.output else folder.root
    key = "" if spec.output else folder.key("output")
    if not spec.output:
        target.delete_prefix(key)  # what a cancelled driver of the same run left
    out_filesystem, base = target.filesystem()
    output = f"{target.url}/{key}".rstrip("/")
    columns = {name: spec.inputs.get(name, name) for name in _names(version.signature)}
    data = ray.data.read_parquet(paths, filesystem=filesystem)
    missing = [c for c in [*columns.values(), *spec.keep] if c not in (data.schema().names or [])]
    if missing:
        raise RunError(
            f"the data has no column {', '.join(missing)}, only {', '.join(data.schema().names)}",
            "say which column is which input: inputs: {model_input: column}",
        )
    answers = data.map_batches(
        Answers,
        fn_constructor_kwargs={
            "root": folder.root, "version": version, "columns": columns, "keep": spec.keep,
            "allow_code": spec.allow_code,
        },
        batch_size=spec.rows, batch_format="numpy", num_cpus=spec.resources.cpus,
        num_gpus=spec.resources.gpus or None, compute=ActorPoolStrategy(size=workers),
    )  # fmt: skip
    try:
        answers.write_parquet(f"{base}/{key}".rstrip("/"), filesystem=out_filesystem)
    except ray.exceptions.RayError as error:
        raise _told(error) from None
    import pyarrow.dataset

    written = pyarrow.dataset.dataset(f"{base}/{key}".rstrip("/"), filesystem=out_filesystem)
    return output, written.count_rows()


def _told(error: Exception) -> SundogError:
    """Ray's error holds the worker's: ours is passed on, anything else becomes one line."""
    cause: Any = error
    while cause is not None:
        if isinstance(cause, SundogError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return RunError(f"a batch failed: {lines[-1].strip()}", "try fewer rows in a call (rows: 64)")


def _names(signature: Signature) -> list[str]:
    return [spec.name for spec in signature.inputs]


class Answers:
    """The model in a worker of the pool: a batch of rows in, the same rows' answers out."""

    def __init__(
        self, root: Root, version: ModelVersion, columns: dict[str, str], keep: tuple[str, ...],
        allow_code: bool,
    ) -> None:  # fmt: skip
        from sundog.storage.programs import load_model

        self._model = load_model(root, version, allow_code=allow_code)
        self._columns, self._keep = columns, keep
        self._dtypes = {spec.name: _DTYPES.get(spec.datatype) for spec in version.signature.inputs}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = {
            name: dense(batch[column], self._dtypes[name]) for name, column in self._columns.items()
        }
        return {column: batch[column] for column in self._keep} | dict(self._model.predict(inputs))


_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32,
    "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip


def dense(column: Any, dtype: Any) -> Any:
    """A column of lists as one array of shape [rows, …], in the type that the model takes."""
    nested = getattr(column, "dtype", None) == np.dtype(object)
    array = np.stack(list(column)) if nested else np.asarray(column)
    return array if dtype is None else array.astype(dtype, copy=False)
