"""The pieces of a batch job cover every row once, in order, and read back what was written."""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.errors import RunError
from sundog.runs import batch_pieces
from sundog.runs.batch_pieces import column, cut, dense, digest, list_row_groups, read

LOCAL = pyarrow.fs.LocalFileSystem()


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(batch_pieces).failed == 0


@given(
    groups=st.lists(st.lists(st.integers(0, 3000), max_size=4), max_size=4), rows=st.integers(1, 99)
)
def test_pieces_cover_every_row_once_and_sort_into_the_order_of_the_input(groups, rows):
    files = [(f"f{i}", each) for i, each in enumerate(groups)]
    pieces = cut(files, rows)
    for i, each in enumerate(groups):
        for group, count in enumerate(each):
            mine = [p for p in pieces if (p.file, p.row_group) == (i, group)]
            assert [p.start for p in mine] == list(np.cumsum([0, *(p.rows for p in mine)])[:-1])
            assert sum(p.rows for p in mine) == count
            assert all(p.start % rows == 0 and p.rows > 0 for p in mine)
            assert len(mine) <= 8
    names = [p.name for p in pieces]
    assert names == sorted(set(names))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    table = pa.table({"x": [[float(i), i + 0.5] for i in range(50)], "label": range(50)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    pq.write_table(table.slice(0, 7), tmp_path / "sub/b.parquet")
    (tmp_path / "_SUCCESS.parquet").write_bytes(b"a writer's own note")
    return tmp_path


def test_pieces_read_back_are_the_rows(folder):
    files, schema = list_row_groups(LOCAL, [str(folder)])
    assert [groups for _, groups in files] == [[20, 20, 10], [7]]
    assert schema.names == ["x", "label"]
    pieces = cut(files, rows=3)
    batches = [batch for piece in pieces for batch in read(LOCAL, piece, ["label"], rows=3)]
    assert pa.Table.from_batches(batches)["label"].to_pylist() == [*range(50), *range(7)]
    assert max(batch.num_rows for batch in batches) == 3


def test_a_file_that_is_not_parquet_is_named(folder):
    (folder / "z.parquet").write_text("no")
    with pytest.raises(RunError, match=r"z\.parquet cannot be read"):
        list_row_groups(LOCAL, [str(folder)])


def test_files_of_two_kinds_are_refused(folder):
    pq.write_table(pa.table({"y": [1]}), folder / "c.parquet")
    with pytest.raises(RunError, match="columns"):
        list_row_groups(LOCAL, [str(folder)])


def test_another_model_is_another_result(folder):
    pieces = cut(list_row_groups(LOCAL, [str(folder)])[0], rows=3)
    assert digest(pieces, model="a@1") == digest(pieces, model="a@1")
    assert digest(pieces, model="a@1") != digest(pieces, model="a@2")
    assert digest(pieces, model="a@1") != digest(pieces[1:], model="a@1")


@given(st.lists(st.integers(1, 4), max_size=3), st.integers(2, 5))
def test_a_column_of_nested_lists_is_an_array_and_back(shape, rows):
    array = np.arange(rows * int(np.prod(shape)), dtype=np.float32).reshape(rows, *shape)
    assert np.array_equal(dense(column(array), np.float32), array)
    lists = pa.array(array.tolist())  # of no fixed length, as CSV and most writers have them
    assert np.array_equal(dense(lists, np.float32), array)
    assert np.array_equal(dense(column(array).slice(1), None), array[1:])


def test_rows_of_different_lengths_and_missing_rows_are_refused():
    with pytest.raises(RunError, match="different lengths, 1 to 2"):
        dense(pa.array([[1.0], [1.0, 2.0]]), None)
    with pytest.raises(RunError, match="1 rows have no value"):
        dense(pa.array([1.0, None]), None)
