"""Connections to S3 that break: nothing is half-registered, and a lost answer is no lost race."""

import os

import pytest
import s3server

from sundog.errors import NotFound, StorageUnavailable
from sundog.storage.gc import collect
from sundog.storage.models import Registry, Signature, TensorSpec
from sundog.storage.root import open_root

_SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


@pytest.fixture(scope="module")
def endpoint():
    with s3server.s3_server() as address:
        yield address


@pytest.fixture
def proxy(endpoint, monkeypatch):
    for name, value in s3server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3server.BreakingProxy(endpoint) as proxy:
        yield proxy


@pytest.fixture
def bucket(endpoint):
    return s3server.make_bucket(endpoint)


def _register(root, path, alias=None):
    return Registry(root).register(
        "digits",
        {"model.pt2": path},
        kind="torch-export",
        signature=_SIGNATURE,
        metrics={},
        lineage={},
        alias=alias,
    )


@pytest.mark.parametrize("size_mib", [4, 40])  # one put; a multipart upload
def test_an_upload_that_breaks_registers_nothing(
    proxy, endpoint, bucket, tmp_path, size_mib, monkeypatch
):
    path = tmp_path / "model.pt2"
    path.write_bytes(os.urandom(size_mib << 20))
    root = open_root(f"s3://{bucket}/p")
    broken = type(root)(root.url, endpoint=proxy.endpoint)
    proxy.cut_upload_after = 2 << 20  # in the middle of the body, every time
    with pytest.raises(StorageUnavailable, match="no whole answer") as raised:
        _register(broken, path)
    assert "try again" in raised.value.fix
    assert proxy.num_cut > 0
    # Past the code under test: what is in the bucket?
    straight = type(root)(root.url, endpoint=endpoint)
    assert list(straight.entries("models")) == []
    assert Registry(straight).models() == []
    with pytest.raises(NotFound):
        Registry(straight).get("digits")
    collect(straight, older_than_s=-60)
    assert "Uploads" not in s3server.client(endpoint).list_multipart_uploads(Bucket=bucket)
    # And the same call succeeds once the network is back, with the first number.
    proxy.cut_upload_after = None
    assert _register(broken, path, alias="champion").version == 1
    assert Registry(straight).verify("digits@champion") == []


def test_files_go_up_but_the_commit_breaks(proxy, endpoint, bucket, tmp_path):
    """The blobs arrive, creating model.json does not: readers see no version, gc finds the blobs."""
    path = tmp_path / "model.pt2"
    path.write_bytes(b"x" * 1000)
    straight = type(open_root(f"s3://{bucket}"))(f"s3://{bucket}/p", endpoint=endpoint)
    broken = type(straight)(straight.url, endpoint=proxy.endpoint)
    broken.create("warm", b"")  # what is asked once a process was asked
    broken.delete("warm")
    upload = broken.upload

    def upload_then_break(local, key):
        upload(local, key)
        proxy.cut_upload_after = 0  # from now on nothing goes through

    broken.upload = upload_then_break
    with pytest.raises(StorageUnavailable):
        _register(broken, path)
    assert Registry(straight).models() == []
    assert [e.key.rpartition("/")[2] for e in straight.entries()] == ["model.pt2"]
    assert len(collect(straight, older_than_s=-60)) == 1
    assert list(straight.entries()) == []


def test_a_create_whose_answer_is_lost_is_still_ours(proxy, endpoint, bucket):
    root = open_root(f"s3://{bucket}/p")
    broken = type(root)(root.url, endpoint=proxy.endpoint)
    broken.create("warm", b"")  # what is asked once a process was asked
    proxy.drop_answers = 1  # the put lands, its answer does not; the client's repeat gets a 412
    broken.create("k", b"mine")
    assert proxy.num_cut == 1
    etag = type(root)(root.url, endpoint=endpoint).read_tagged("k")[1]
    proxy.drop_answers = 1
    after = broken.swap("k", b"mine again", etag)
    assert proxy.num_cut == 2
    assert broken.read_tagged("k") == (b"mine again", after)


def test_a_read_whose_answer_is_lost_is_repeated(proxy, bucket):
    root = open_root(f"s3://{bucket}/p")
    broken = type(root)(root.url, endpoint=proxy.endpoint)
    broken.write("k", b"data")
    proxy.drop_answers = 1
    assert broken.read("k") == b"data"
    proxy.drop_answers = 1
    assert b"".join(broken.stream("k")) == b"data"
    assert proxy.num_cut == 2


def test_a_service_that_ignores_conditions_is_refused(proxy, endpoint, bucket):
    root = open_root(f"s3://{bucket}/p")
    careless = type(root)(root.url, endpoint=proxy.endpoint)
    proxy.ignore_conditions = True
    for write in (careless.create, lambda key, data: careless.swap(key, data, None)):
        with pytest.raises(StorageUnavailable, match="ignores IfNoneMatch") as raised:
            write("models/digits/1/model.json", b"")
        assert "conditional writes" in raised.value.fix
    straight = type(root)(root.url, endpoint=endpoint)
    assert list(straight.entries()) == []
    assert straight.children() == []
