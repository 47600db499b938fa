"""Datasets: versions, equal content, errors that say what is there."""

import pyarrow
import pytest

from sundog.errors import Corrupt, NotFound, StorageUnavailable
from sundog.storage import datasets
from sundog.storage.datasets import list_datasets, open_dataset, write_dataset
from sundog.storage.root import open_root


@pytest.fixture
def root(tmp_path):
    return open_root(str(tmp_path / "root"))


@pytest.fixture
def table():
    return pyarrow.table({"x": [1.0, 2.0, 3.0], "y": [0, 1, 0]})


def test_new_rows_are_a_new_version_and_old_ones_stay(root, table):
    one = write_dataset(root, "rows", {"train": table})
    two = write_dataset(root, "rows", {"train": table.slice(1)})
    assert (one.ref, two.ref) == ("rows@1", "rows@2")
    assert open_dataset(root, "rows@1").table("train") == table
    assert open_dataset(root, "rows@latest") == open_dataset(root, "rows") == two
    assert list_datasets(root) == ["rows"]


def test_the_same_rows_written_again_are_the_same_version(root, table):
    one = write_dataset(root, "rows", {"train": table}, {"source": ("a", "b")})
    again = write_dataset(root, "rows", {"train": table}, {"source": ["a", "b"]})
    assert again.ref == one.ref
    assert write_dataset(root, "rows", {"train": table}, {"source": "c"}).ref == "rows@2"


def test_a_large_split_is_several_files(root, table, monkeypatch):
    monkeypatch.setattr(datasets, "_FILE_BYTES", 20)
    dataset = write_dataset(root, "rows", {"train": table})
    assert len(dataset.uris("train")) == 3
    assert dataset.table("train") == table
    assert dataset.verify() == []


def test_an_empty_split_keeps_its_columns(root, table):
    dataset = write_dataset(root, "rows", {"train": table.slice(0, 0)})
    assert dataset.table("train").schema == table.schema
    assert dataset.splits["train"].rows == 0


def test_what_is_not_there_names_what_is_near(root, table):
    with pytest.raises(NotFound):
        open_dataset(root, "rows")
    dataset = write_dataset(root, "rows", {"train": table})
    for reference, near in (("row", "'rows'"), ("rows@7", "versions 1"), ("rows@best", "latest")):
        with pytest.raises(NotFound) as raised:
            open_dataset(root, reference)
        assert near in raised.value.fix
    with pytest.raises(NotFound) as raised:
        dataset.table("test")
    assert "train" in raised.value.fix


def test_damage_is_named(root, table):
    dataset = write_dataset(root, "rows", {"train": table})
    path = root.local_path(dataset.splits["train"].files[0])
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    assert "sha256" in dataset.verify()[0]
    path.write_bytes(b"not parquet")
    with pytest.raises(Corrupt):
        dataset.table("train")
    path.unlink()
    assert "missing" in dataset.verify()[0]
    with pytest.raises(Corrupt, match="gone"):
        dataset.table("train")


def test_a_write_that_fails_leaves_no_version(root, table, monkeypatch):
    def full(*_):
        raise StorageUnavailable("full")

    monkeypatch.setattr(type(root), "create", full)
    with pytest.raises(StorageUnavailable):
        write_dataset(root, "rows", {"train": table})
    monkeypatch.undo()
    with pytest.raises(NotFound):
        open_dataset(root, "rows")
    assert list_datasets(root) == []
    assert write_dataset(root, "rows", {"train": table}).version == 1
