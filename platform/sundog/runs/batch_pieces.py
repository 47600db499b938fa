"""A batch job cut into pieces that are answered once: what to read, and what a finished piece is called.

Knows files and rows; runs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sundog.errors import RunError, first_line

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.fs

_CALLS_IN_A_PIECE = 4
_MOST_PIECES_OF_A_ROW_GROUP = 8
# A slice of a row group is read by decoding what lies before it: more slices, more wasted decoding.


@dataclass(frozen=True)
class Piece:
    """`rows` rows of one row group of one file, from `start` (counted within the row group)."""

    file: int
    path: str
    row_group: int
    start: int
    rows: int

    @property
    def name(self) -> str:
        """Its file in the result: sorted by name, the result is in the order of the input."""
        return f"part-{self.file:05d}-{self.row_group:05d}-{self.start:010d}.parquet"


def cut(row_groups: Sequence[tuple[str, Sequence[int]]], rows: int) -> list[Piece]:
    """Files with the rows of each of their row groups -> pieces of whole calls of `rows` rows.

    >>> [p.rows for p in cut([("a", [10])], rows=1)]
    [4, 4, 2]
    """
    pieces = []
    for file, (path, groups) in enumerate(row_groups):
        for group, count in enumerate(groups):
            calls = -(-count // rows)
            size = rows * max(_CALLS_IN_A_PIECE, -(-calls // _MOST_PIECES_OF_A_ROW_GROUP))
            pieces += [
                Piece(file, path, group, start, min(size, count - start))
                for start in range(0, count, size)
            ]
    return pieces


def digest(pieces: Sequence[Piece], **about: Any) -> str:
    """What a half-finished result is a part of: another model, input or cut has another digest."""
    whole = {"pieces": [asdict(piece) for piece in pieces], **about}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def list_row_groups(
    filesystem: pyarrow.fs.FileSystem, paths: Sequence[str]
) -> tuple[list[tuple[str, list[int]]], pyarrow.Schema]:
    """Every Parquet file below the paths, in order, with the rows of its row groups; their schema.

    Reads footers only. RunError for what is not Parquet, and where two files disagree.
    """
    import pyarrow as pa
    import pyarrow.fs
    import pyarrow.parquet

    found: list[tuple[str, list[int]]] = []
    schema: pa.Schema | None = None
    for path in _files(filesystem, paths):
        try:
            with filesystem.open_input_file(path) as source:
                file = pyarrow.parquet.ParquetFile(source)
                groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                here = file.schema_arrow
        except (pa.ArrowInvalid, OSError) as error:
            raise RunError(
                f"data: {path} cannot be read as Parquet: {first_line(error)}",
                "take it out of the folder, or write it again",
            ) from None
        if schema is not None and here.names != schema.names:
            raise RunError(
                f"data: {path} has the columns {', '.join(here.names)}, the files before it "
                f"{', '.join(schema.names)}",
                "run a batch for each kind of file",
            )
        schema = here
        found.append((path, groups))
    if schema is None:
        raise RunError("data: there is no .parquet file", "give a Parquet file or a folder of them")
    return found, schema


def _files(filesystem: pyarrow.fs.FileSystem, paths: Sequence[str]) -> Iterator[str]:
    import pyarrow.fs

    for info in filesystem.get_file_info(list(paths)):
        if info.type != pyarrow.fs.FileType.Directory:
            yield info.path
            continue
        below = filesystem.get_file_info(pyarrow.fs.FileSelector(info.path, recursive=True))
        # As Parquet readers do: what begins with _ or . is a note of whoever wrote the folder.
        yield from sorted(
            f.path for f in below
            if f.type == pyarrow.fs.FileType.File and f.path.endswith(".parquet")
            and not f.base_name.startswith(("_", "."))
        )  # fmt: skip


def read(
    filesystem: pyarrow.fs.FileSystem, piece: Piece, columns: Sequence[str], rows: int
) -> Iterator[pyarrow.RecordBatch]:
    """The piece's rows, at most `rows` at a time."""
    import pyarrow.parquet

    with filesystem.open_input_file(piece.path) as source:
        file = pyarrow.parquet.ParquetFile(source)
        begin, end = piece.start, piece.start + piece.rows
        at = 0
        for batch in file.iter_batches(rows, row_groups=[piece.row_group], columns=list(columns)):
            if at >= end:
                return
            part = batch.slice(max(0, begin - at), end - max(at, begin))
            at += batch.num_rows
            if part.num_rows:
                yield part


def dense(column: pyarrow.Array, dtype: Any) -> np.ndarray[Any, Any]:
    """A column as one array of shape [rows, …], in the type that the model takes.

    RunError where a row is missing or has another shape than the first.
    """
    import pyarrow as pa

    if column.null_count:
        raise RunError(f"{column.null_count} rows have no value", "leave them out of the data")
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    shape, inner = [len(column)], column
    while pa.types.is_list(inner.type) or pa.types.is_large_list(inner.type) or _fixed(inner.type):
        flat = inner.flatten()
        each = len(flat) // len(inner) if len(inner) else 0
        if not _fixed(inner.type):
            lengths = inner.value_lengths().to_numpy(zero_copy_only=False)
            if len(lengths) and (lengths != each).any():
                raise RunError(
                    f"rows have different lengths, {lengths.min()} to {lengths.max()}",
                    "a model takes rows of one shape: pad them, or run a batch for each length",
                )
        shape.append(each)
        inner = flat
    array = inner.to_numpy(zero_copy_only=False).reshape(shape)
    return array if dtype is None else array.astype(dtype, copy=False)


def _fixed(kind: pyarrow.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind))


def column(array: np.ndarray[Any, Any]) -> pyarrow.Array:
    """Answers of shape [rows, …] as a column that every Parquet reader knows: nested fixed lists."""
    import pyarrow as pa

    values = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values
