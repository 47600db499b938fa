from __future__ import annotations

import pyarrow as pa
import pytest

from sundog.errors import NotFound, SundogError
from sundog.runs.ingest import ingest_digits, ingest_file, split
from sundog.storage.root import open_root


@pytest.fixture
def root(tmp_path):
    return open_root(str(tmp_path / "root"))


def test_the_digits_are_written_once(root):
    first, second = ingest_digits(root), ingest_digits(root)
    assert first.ref == second.ref == "digits@1"
    assert sum(s.rows for s in first.splits.values()) == 1797
    assert first.table("train").schema.field("pixels").type == pa.list_(pa.float32(), 64)


def test_splits_cover_all_rows_once_and_never_change():
    table = pa.table({"row": list(range(101))})
    parts, again = split(table), split(table)
    assert sorted(r for p in parts.values() for r in p["row"].to_pylist()) == list(range(101))
    assert {k: v["row"].to_pylist() for k, v in parts.items()} == {
        k: v["row"].to_pylist() for k, v in again.items()
    }
    assert parts["train"].num_rows > parts["test"].num_rows > parts["val"].num_rows > 0


def test_a_csv_becomes_a_dataset(root, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n" + "\n".join(f"{i},{i * i}" for i in range(30)))
    assert ingest_file(root, "squares", file).split("train").rows == 21


def test_a_file_that_is_not_there_or_not_a_table_says_so(root, tmp_path):
    with pytest.raises(NotFound):
        ingest_file(root, "x", tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(SundogError, match="cannot be read"):
        ingest_file(root, "x", tmp_path / "bad.parquet")


def test_a_folder_has_a_file_for_each_split(root, tmp_path):
    folder = tmp_path / "flowers"
    folder.mkdir()
    with pytest.raises(NotFound, match="holds no"):
        ingest_file(root, "flowers", folder)
    for name, rows in {"train": 5, "test": 2}.items():
        lines = [f"{name},{i}" for i in range(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["split,n", *lines]))
    dataset = ingest_file(root, "flowers", folder)
    assert {n: s.rows for n, s in dataset.splits.items()} == {"test": 2, "train": 5}
    assert set(dataset.table("test")["split"].to_pylist()) == {"test"}
