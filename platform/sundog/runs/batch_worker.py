"""A worker of a batch job: reads a piece, asks the model, puts the answers into the result, whole.

Loads the model without its training code. Which pieces there are is `batch_pieces.py`'s to say.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sundog.errors import RunError
from sundog.runs.batch_pieces import Piece, column, dense, read
from sundog.spec.batch import BatchSpec
from sundog.storage.root import Root
from sundog.storage.runs import RunFolder
from sundog.storage.signature import ANY, DATATYPES, TensorSpec

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.fs

    from sundog.storage.models import ModelVersion


@dataclass(frozen=True)
class Work:
    """What every worker of the job is given: where to read and write, and with which model."""

    spec: BatchSpec
    folder: RunFolder
    version: ModelVersion
    columns: dict[str, str]
    """model input -> column"""
    source: pyarrow.fs.FileSystem
    target: Root
    key: str
    environment: dict[str, str]
    directory: str | None


class Answers:
    """What Ray Data keeps in each of its actors: the model, and the run's log."""

    def __init__(self, work: Work) -> None:
        os.environ.update(work.environment)
        if work.directory and work.directory not in sys.path:
            sys.path.insert(0, work.directory)
        from sundog.rayapi import session
        from sundog.runs.worker import WorkerLog
        from sundog.storage.programs import load_model

        self._work = work
        # Ray gives an actor of a pool no number: its process has one.
        self._log = WorkerLog(work.folder, os.getpid())
        with self._log:
            self._model = load_model(
                work.folder.root, work.version, allow_code=work.spec.allow_code,
                device="cuda" if work.spec.resources.gpus else "cpu", scratch=session.folder(),
            )  # fmt: skip

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One piece a call, its fields as arrays of one: what Ray Data hands over."""
        piece = Piece(**{name: values[0].item() if hasattr(values[0], "item") else values[0]
                         for name, values in batch.items()})  # fmt: skip
        with self._log:
            try:
                self._answer(piece)
            except RunError as error:
                raise RunError(f"{piece.path}: {error.message}", error.fix) from None
        return {"rows": [piece.rows]}

    def _answer(self, piece: Piece) -> None:
        import pyarrow.parquet

        with tempfile.TemporaryDirectory(prefix="sundog-batch-") as scratch:
            path = Path(scratch, piece.name)
            writer = None
            try:
                for answers in self._answered(piece):
                    writer = writer or pyarrow.parquet.ParquetWriter(path, answers.schema)
                    writer.write_table(answers)
            finally:
                if writer is not None:
                    writer.close()
            if writer is None:
                raise RunError("the file is shorter than it was when the job began", "start anew")
            # Complete or not at all: the name's presence is what says that the piece is done.
            self._work.target.upload(path, f"{self._work.key}/{piece.name}".lstrip("/"))

    def _answered(self, piece: Piece) -> Iterator[pyarrow.Table]:
        import pyarrow as pa

        work = self._work
        wanted = list(dict.fromkeys([*work.columns.values(), *work.spec.keep]))
        for rows in read(work.source, piece, wanted, work.spec.rows):
            inputs = {
                tensor.name: fitting(rows.column(work.columns[tensor.name]), tensor)
                for tensor in work.version.signature.inputs
            }
            outputs = whole(self._model.predict(inputs))
            yield pa.table(
                {name: rows.column(name) for name in work.spec.keep}
                | {name: column(array) for name, array in outputs.items()}
            )


def fitting(rows: pyarrow.Array, tensor: TensorSpec) -> np.ndarray[Any, Any]:
    """The rows as the tensor that the model takes. RunError where they cannot be."""
    dtype = DATATYPES.get(tensor.datatype)
    array = dense(rows, None if dtype in (None, "object") else np.dtype(dtype))
    asked = tensor.shape[1:]
    if len(array.shape) != len(tensor.shape) or any(
        want not in (ANY, have) for want, have in zip(asked, array.shape[1:], strict=True)
    ):
        raise RunError(
            f"input {tensor.name} takes rows of shape {list(asked)}, the column has "
            f"{list(array.shape[1:])}",
            "say which column is which input: inputs: {model_input: column}",
        )
    return array


def whole(answer: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What a model returned, awaited where it must be. RunError for answers in parts."""
    if inspect.isawaitable(answer):
        answer = asyncio.run(_awaited(answer))
    if not isinstance(answer, Mapping):
        raise RunError(
            "the model answers in parts, and a batch writes whole answers",
            "let predict return a dict of arrays",
        )
    return {name: np.asarray(array) for name, array in answer.items()}


async def _awaited(answer: Any) -> Any:
    return await answer
