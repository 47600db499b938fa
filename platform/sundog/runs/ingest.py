"""Data into the storage root: the digits that ship with scikit-learn, or anybody's Parquet and CSV.

Splits by a fixed permutation, so the same input always makes the same dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sundog.errors import NotFound, SundogError, first_line
from sundog.runs.sampler import mix, permuted

if TYPE_CHECKING:
    import pyarrow

    from sundog.storage.datasets import Dataset
    from sundog.storage.root import Root

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def ingest_digits(root: Root, name: str = "digits") -> Dataset:
    """1,797 handwritten digits: `pixels` (64 float32, 0..16) and `label` (int64)."""
    import pyarrow as pa

    from sundog.storage.datasets import write_dataset

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SundogError(
            "the digits come with scikit-learn, which is not installed",
            "pip install 'sundog[demo]'",
        ) from None
    raw = load_digits()
    pixels = pa.array(raw.data.astype("float32").tolist(), pa.list_(pa.float32(), 64))
    table = pa.table({"pixels": pixels, "label": pa.array(raw.target.astype("int64"))})
    about = {"source": "scikit-learn load_digits: UCI ML hand-written digits, test part"}
    return write_dataset(root, name, split(table), about)


def ingest_file(
    root: Root, name: str, path: Path, shares: Mapping[str, float] = SHARES, seed: int = 0
) -> Dataset:
    """A Parquet or CSV file as a dataset with these splits; of a folder, each file is a split."""
    from sundog.storage.datasets import write_dataset

    if path.is_dir():
        files = sorted([*path.glob("*.parquet"), *path.glob("*.csv")])
        if not files:
            raise NotFound(f"{path} holds no .parquet or .csv", "name them train, val and test")
        tables = {file.stem: read_table(file) for file in files}
        return write_dataset(root, name, tables, {"source": path.name})
    table = read_table(path)
    return write_dataset(root, name, split(table, shares, seed), {"source": path.name})


def read_table(path: Path) -> pyarrow.Table:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.exists():
        raise NotFound(f"{path} is not there", "give a .parquet or .csv file")
    try:
        if path.suffix == ".csv":
            return pyarrow.csv.read_csv(path)
        return pyarrow.parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SundogError(
            f"{path} cannot be read: {first_line(error)}", "give a .parquet or .csv file"
        ) from None


def split(
    table: pyarrow.Table, shares: Mapping[str, float] = SHARES, seed: int = 0
) -> dict[str, pyarrow.Table]:
    """The rows in a fixed shuffled order, cut by `shares`; what rounding leaves goes to the first."""
    rows = table.num_rows
    if rows < len(shares):
        raise SundogError(
            f"{rows} rows cannot be split into {', '.join(shares)}",
            "give more rows, or a folder with one file for each split",
        )
    total = sum(shares.values())
    order = permuted(np.arange(rows), rows, mix(seed, rows))
    counts = {name: max(1, int(rows * share / total)) for name, share in shares.items()}
    first = next(iter(counts))
    counts[first] += rows - sum(counts.values())
    out, start = {}, 0
    for name, count in counts.items():
        out[name] = table.take(order[start : start + count]).combine_chunks()
        start += count
    return out
