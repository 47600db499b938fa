"""The same promises from a local folder and from S3: atomic, conditional, listed, streamed."""

import hashlib
import pickle

import pyarrow.parquet
import pytest
import s3server

from sundog.errors import AlreadyExists, Conflict, NotFound, StorageUnavailable
from sundog.storage.datasets import open_dataset, write_dataset
from sundog.storage.gc import collect, orphans
from sundog.storage.root import open_root


@pytest.fixture(scope="module")
def endpoint():
    with s3server.s3_server() as address:
        yield address


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch):
    for name, value in s3server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    if request.param == "local":
        return open_root(str(tmp_path / "root"))
    endpoint = request.getfixturevalue("endpoint")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    root = open_root(f"s3://{s3server.make_bucket(endpoint)}/a/prefix")
    # What a Ray worker gets: the address alone, in a process without the variable.
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    return pickle.loads(pickle.dumps(root))


def test_what_is_written_is_read_and_replaced(root):
    with pytest.raises(NotFound):
        root.read("a/b")
    root.write("a/b", b"one")
    root.write("a/b", b"two")
    assert root.read("a/b") == b"two"
    assert root.exists("a/b")
    assert not root.exists("a")
    root.delete("a/b")
    root.delete("a/b")
    assert not root.exists("a/b")


def test_many_are_read_in_the_order_of_their_keys(root):
    keys = [f"many/{n}" for n in range(40)]
    for key in keys:
        root.write(key, key.encode())
    assert root.read_many([*keys[::-1], "many/none"]) == [*(k.encode() for k in keys[::-1]), None]


def test_only_the_first_creation_succeeds(root):
    root.create("k", b"first")
    with pytest.raises(AlreadyExists):
        root.create("k", b"second")
    assert root.read("k") == b"first"


def test_a_swap_needs_the_current_etag(root):
    first = root.swap("k", b"1", None)
    second = root.swap("k", b"2", first)
    assert root.read_tagged("k") == (b"2", second)
    for stale in (first, None):
        with pytest.raises(Conflict):
            root.swap("k", b"3", stale)
    with pytest.raises(Conflict):
        root.swap("never/there", b"3", first)
    assert root.read("k") == b"2"
    assert not root.exists("never/there")


def test_listing_is_recursive_and_children_are_one_level(root):
    for key in ("m/a/1/x", "m/a/2/x", "m/b", "n"):
        root.write(key, key.encode())
    assert [e.key for e in root.entries("m")] == ["m/a/1/x", "m/a/2/x", "m/b"]
    assert [e.size for e in root.entries("m/a")] == [7, 7]
    assert root.children("m") == ["a", "b"]
    assert root.children("m/a") == ["1", "2"]
    assert root.children("") == ["m", "n"]
    assert root.children("nothing") == []
    assert root.delete_prefix("m/a") == 2
    assert root.children("m") == ["b"]


def test_a_prefix_is_a_folder_not_the_start_of_a_name(root):
    root.write("runs/a/x", b"")
    root.write("runs/a-2/x", b"")
    assert [e.key for e in root.entries("runs/a")] == ["runs/a/x"]
    root.delete_prefix("runs/a")
    assert root.exists("runs/a-2/x")


def test_files_go_up_and_down_whole(root, tmp_path):
    data = hashlib.sha256(b"x").digest() * (1 << 20)  # 32 MiB: more than one part on S3
    source = tmp_path / "source"
    source.write_bytes(data)
    root.upload(source, "big/file")
    assert [e.size for e in root.entries("big")] == [len(data)]
    root.download("big/file", tmp_path / "down" / "file")
    assert (tmp_path / "down" / "file").read_bytes() == data
    assert b"".join(root.stream("big/file")) == data
    assert b"".join(root.stream("big/file", len(data) - 5)) == data[-5:]
    assert b"".join(root.stream("big/file", len(data))) == b""
    with pytest.raises(NotFound):
        root.download("big/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_dataset_round_trips_and_arrow_reads_its_files(root):
    table = pyarrow.table({"x": list(range(1000)), "label": [i % 10 for i in range(1000)]})
    dataset = write_dataset(root, "digits", {"train": table, "test": table.slice(0, 10)})
    again = open_dataset(root, "digits")
    assert again == dataset
    assert again.table("train") == table
    filesystem, base = root.filesystem()
    key = again.splits["test"].files[0]
    assert pyarrow.parquet.read_table(f"{base}/{key}", filesystem=filesystem).num_rows == 10
    assert again.uris("test") == [f"{root.url}/{key}"]


def test_an_unfinished_registration_is_invisible_and_collected(root, tmp_path):
    (tmp_path / "f").write_bytes(b"bytes")
    root.upload(tmp_path / "f", "models/digits/files/abc/model.pt2")
    root.upload(tmp_path / "f", "data/rows/files/def/train.parquet")
    assert orphans(root) == []  # young: its registration may still be going on
    found = [o.key for o in orphans(root, older_than_s=-60)]
    assert found == ["models/digits/files/abc/model.pt2", "data/rows/files/def/train.parquet"]
    assert [o.key for o in collect(root, older_than_s=-60)] == found
    assert list(root.entries()) == []


def test_an_unfinished_multipart_upload_is_collected(endpoint, monkeypatch):
    for name, value in s3server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    bucket = s3server.make_bucket(endpoint)
    client = s3server.client(endpoint)
    client.create_multipart_upload(Bucket=bucket, Key="p/models/digits/files/abc/model.pt2")
    root = open_root(f"s3://{bucket}/p")
    assert list(root.entries()) == []
    assert [o.leftover for o in collect(root, older_than_s=-60)] == [True]
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)


@pytest.mark.parametrize(
    ("url", "says"),
    [("s3://no-such-bucket-of-ours/x", "make the bucket"), ("s3://refused/x", "AWS_ENDPOINT_URL")],
)
def test_an_unreachable_root_says_what_to_do(url, says, endpoint, monkeypatch):
    for name, value in s3server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    # Port 9 is discard; nothing listens there.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9" if "refused" in url else endpoint)
    root = open_root(url)
    for attempt in (
        lambda: root.read("k"),
        lambda: root.create("k", b""),
        lambda: root.children("k"),
    ):
        with pytest.raises(StorageUnavailable) as raised:
            attempt()
        assert says in raised.value.fix
