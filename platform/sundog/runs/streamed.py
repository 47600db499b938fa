"""Training data that stays in the storage root: row groups of Parquet, read when a step needs them.

Holds at most so many bytes of decoded rows. The order is `stream_order.py`'s; what a recipe returns
from `dataset(split)` is `Streamed` for tables and `TokenWindows` for language models.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sundog.errors import (
    Corrupt,
    NotFound,
    RecipeError,
    StorageUnavailable,
    SundogError,
    first_line,
)
from sundog.storage.datasets import digest

if TYPE_CHECKING:
    import pyarrow
    import torch

    from sundog.runs.sampler import Indices
    from sundog.storage.datasets import Dataset

MEMORY_BYTES = 256 << 20
"""Decoded rows that one worker keeps of a split, unless the recipe says otherwise."""

WINDOW = 8
"""Row groups whose rows are shuffled together; with eight micro-batches 64 are under way."""


@dataclass
class Reads:
    """What was read so far: whole row groups, and how many of them not for the first time."""

    groups: int = 0
    again: int = 0
    bytes: int = 0
    most_bytes: int = 0  # held at once
    seen: set[int] = field(default_factory=set)


class RowGroups:
    """The row groups of a split as numpy columns, the last used ones in memory."""

    def __init__(
        self, data: Dataset, split: str, columns: Sequence[str] | None, memory_bytes: int
    ) -> None:
        self.data, self.split, self.memory_bytes = data, split, memory_bytes
        self.reads = Reads()
        self._lock = threading.Lock()
        self._io = threading.Lock()  # a Parquet file has one reader at a time
        self._held: OrderedDict[int, dict[str, np.ndarray[Any, Any]]] = OrderedDict()
        self._held_bytes = 0
        self._coming: dict[int, Future[Any]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._files: dict[int, Any] = {}
        self._where: list[tuple[int, int]] = []  # group -> file, group in the file
        starts = [0]
        for number in range(len(data.split(split).files)):
            footer = self._file(number).metadata
            for group in range(footer.num_row_groups):
                self._where.append((number, group))
                starts.append(starts[-1] + footer.row_group(group).num_rows)
        self.starts = np.array(starts, dtype=np.int64)
        self.columns = self._wanted(columns)

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    @property
    def group_rows(self) -> int:
        """Rows of the largest group: what lies together, as far as the order is concerned."""
        return int(np.diff(self.starts).max(initial=1))

    def take(self, rows: Indices) -> dict[str, np.ndarray[Any, Any]]:
        """These rows of every column, in this order. Reads each row group that it needs once."""
        groups = np.searchsorted(self.starts, rows, side="right") - 1
        out: dict[str, np.ndarray[Any, Any]] = {}
        for group in np.unique(groups):
            here = groups == group
            for name, column in self._get(int(group)).items():
                picked = column[rows[here] - self.starts[group]]
                if name not in out:
                    out[name] = np.empty((len(rows), *picked.shape[1:]), picked.dtype)
                out[name][here] = picked
        return out

    def ahead(self, rows: Indices) -> None:
        """Start to read what these rows need, in the background."""
        groups = np.unique(np.searchsorted(self.starts, rows, side="right") - 1)
        with self._lock:
            for group in map(int, groups):
                if group not in self._held and group not in self._coming:
                    if self._pool is None:
                        self._pool = ThreadPoolExecutor(1, "stream")
                    self._coming[group] = self._pool.submit(self._load, group)

    def _get(self, group: int) -> dict[str, np.ndarray[Any, Any]]:
        with self._lock:
            if group in self._held:
                self._held.move_to_end(group)
                return self._held[group]
            coming = self._coming.get(group)
        columns: dict[str, np.ndarray[Any, Any]]
        columns = coming.result() if coming else self._load(group)
        return columns

    def _load(self, group: int) -> dict[str, np.ndarray[Any, Any]]:
        try:
            columns = self._read(group)
            with self._lock:
                self._keep(group, columns)
            return columns
        finally:
            with self._lock:
                self._coming.pop(group, None)

    def _keep(self, group: int, columns: dict[str, np.ndarray[Any, Any]]) -> None:
        self._held[group] = columns
        self._held_bytes += _size(columns)
        self.reads.most_bytes = max(self.reads.most_bytes, self._held_bytes)
        while self._held_bytes > self.memory_bytes and len(self._held) > 1:
            _, old = self._held.popitem(last=False)
            self._held_bytes -= _size(old)

    def _read(self, group: int) -> dict[str, np.ndarray[Any, Any]]:
        import pyarrow as pa

        number, inside = self._where[group]
        try:
            with self._io:
                table = self._file(number).read_row_group(inside, columns=self.columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unread(number, error) from error
        columns = {name: _array(table.column(name), name, self.data.ref) for name in self.columns}
        with self._lock:
            reads = self.reads
            reads.groups, reads.bytes = reads.groups + 1, reads.bytes + _size(columns)
            reads.again += group in reads.seen
            reads.seen.add(group)
        return columns

    def _file(self, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if number not in self._files:
            filesystem, base = self.data.root.filesystem()
            key = self.data.split(self.split).files[number]
            try:
                # Only the footer is read here, and later the row groups that are asked for.
                source = filesystem.open_input_file(f"{base}/{key}")
                self._files[number] = pq.ParquetFile(source, pre_buffer=True)
            except (pa.ArrowInvalid, OSError) as error:
                raise self._unread(number, error) from error
        return self._files[number]

    def _unread(self, number: int, error: Exception) -> SundogError:
        """What a failed read means. Arrow raises OSError for rotten bytes and for storage that is away
        alike: the file's hash tells them apart."""
        split = self.data.split(self.split)
        key, why = split.files[number], first_line(error)
        self._files.pop(number, None)
        try:
            whole = digest(self.data.root, key) == split.sha256[number]
        except NotFound:
            whole, why = False, "it is gone"
        except StorageUnavailable as away:
            return away
        if whole:
            return StorageUnavailable(
                f"{self.data.ref}: {key} is whole, but could not be read: {why}",
                fix="was the storage away or overloaded? the same run id goes on from its last "
                "checkpoint",
            )
        return Corrupt(
            f"{self.data.ref} is damaged: {key}: {why}",
            fix="write the dataset again; it gets a new version",
        )

    def _wanted(self, columns: Sequence[str] | None) -> list[str]:
        there = self._file(0).schema_arrow.names if self._where else []
        missing = [name for name in columns or () if name not in there]
        if missing:
            raise NotFound(
                f"{self.data.ref} has no column {missing[0]!r}", fix=f"it has: {', '.join(there)}"
            )
        return list(columns or there)


class Streamed:
    """Rows of a split as batches of tensors by column, streamed in an order of shuffled row groups.

    Columns are numbers or lists of numbers of one length. `memory_bytes` bounds what a worker holds
    of the split, `window` how many row groups are shuffled together.
    """

    def __init__(
        self,
        data: Dataset,
        split: str,
        columns: Sequence[str] | None = None,
        *,
        window: int = WINDOW,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.source = RowGroups(data, split, columns, memory_bytes)
        self.locality = (self.source.group_rows, window)

    @property
    def reads(self) -> Reads:
        return self.source.reads

    def __len__(self) -> int:
        return self.source.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.batch(np.array([index if index >= 0 else len(self) + index]))
        return {name: column[0] for name, column in batch.items()}

    def batch(self, indices: Indices) -> dict[str, torch.Tensor]:
        import torch

        return {n: torch.from_numpy(c) for n, c in self.source.take(indices).items()}

    def ahead(self, indices: Indices) -> None:
        """Tells which rows come next, to be read in the background."""
        self.source.ahead(indices)


class TokenWindows:
    """A stream of tokens cut into windows: `tokens` [batch, context] and `targets`, one further on.

    The split has one token a row in `column`; window `i` is tokens `[i * context, (i+1) * context]`.
    """

    def __init__(
        self,
        data: Dataset,
        split: str,
        context: int,
        column: str = "token",
        *,
        window: int = WINDOW,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.source = RowGroups(data, split, [column], memory_bytes)
        self.context, self.column = context, column
        self.length = max(0, (self.source.rows - 1) // context)
        if not self.length:
            raise RecipeError(
                f"{data.ref} has {self.source.rows:,} tokens in {split!r}, "
                f"too few for one window of {context}",
                "take a shorter context",
            )
        self.locality = (max(1, self.source.group_rows // context), window)

    @property
    def reads(self) -> Reads:
        return self.source.reads

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.batch(np.array([index if index >= 0 else len(self) + index]))
        return {name: column[0] for name, column in batch.items()}

    def batch(self, indices: Indices) -> dict[str, torch.Tensor]:
        import torch

        tokens = self.source.take(self._rows(indices))[self.column].astype(np.int64)
        windows = torch.from_numpy(tokens.reshape(len(indices), self.context + 1))
        return {"tokens": windows[:, :-1].contiguous(), "targets": windows[:, 1:].contiguous()}

    def ahead(self, indices: Indices) -> None:
        """Tells which windows come next, to be read in the background."""
        self.source.ahead(self._rows(indices))

    def _rows(self, indices: Indices) -> Indices:
        rows: Indices = indices[:, None] * self.context + np.arange(self.context + 1)
        return rows.ravel()


def _array(column: pyarrow.ChunkedArray, name: str, ref: str) -> np.ndarray[Any, Any]:
    """One row group's column as an array [rows, …]. RecipeError for what no tensor can hold."""
    import pyarrow as pa

    kind = column.type
    if column.null_count:
        raise RecipeError(f"{ref}: column {name!r} has empty values", "fill them when ingesting")
    joined = column.combine_chunks()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = joined.flatten().to_numpy(zero_copy_only=False)
        if len(joined) and len(values) % len(joined) == 0:
            width = len(values) // len(joined)
            if pa.types.is_fixed_size_list(kind) or set(joined.value_lengths().to_pylist()) == {
                width
            }:
                return np.ascontiguousarray(values.reshape(len(joined), width))
        raise RecipeError(
            f"{ref}: the lists in column {name!r} differ in length", "pad them when ingesting"
        )
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise RecipeError(
            f"{ref}: column {name!r} is {kind}, which no tensor can hold",
            "name the columns to read: Streamed(data, split, columns=[…])",
        )
    return np.array(joined.to_numpy(zero_copy_only=False))


def _size(columns: dict[str, np.ndarray[Any, Any]]) -> int:
    return sum(column.nbytes for column in columns.values())
