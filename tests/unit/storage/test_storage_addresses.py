"""Which addresses open a root, and what the others are told."""

import pickle

import pytest

from sundog.errors import StorageUnavailable
from sundog.storage.root import open_root, require_shared


def test_a_path_and_a_file_url_are_the_same_root(tmp_path):
    assert (
        open_root(str(tmp_path)).url == open_root(f"file://{tmp_path}/").url == f"file://{tmp_path}"
    )


def test_without_a_url_the_environment_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("SUNDOG_ROOT", str(tmp_path))
    assert open_root(None).url == f"file://{tmp_path}"
    monkeypatch.delenv("SUNDOG_ROOT")
    with pytest.raises(StorageUnavailable, match="no storage root") as raised:
        open_root(None)
    assert "SUNDOG_ROOT" in raised.value.fix


def test_a_relative_root_is_refused_inside_a_ray_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_root("here").url == f"file://{tmp_path}/here"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(StorageUnavailable, match="relative"):
        open_root("here")


@pytest.mark.parametrize("url", ["gs://bucket/x", "az://container/x", "abfs://x@y"])
def test_clouds_that_are_not_supported_yet_are_named(url):
    with pytest.raises(StorageUnavailable, match="not yet supported"):
        open_root(url)


@pytest.mark.parametrize(
    "url", ["file://relative", "s3://", "s3://B_D/x", "s3://b/../x", "ftp://x/y"]
)
def test_addresses_that_mean_nothing_are_refused(url):
    with pytest.raises(StorageUnavailable):
        open_root(url)


def test_an_s3_root_travels_with_its_endpoint_and_without_credentials(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-carry-me")
    root = open_root("s3://bucket/some//prefix/")
    assert root.url == "s3://bucket/some/prefix"
    data = pickle.dumps(root)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert pickle.loads(data) == root
    assert b"do-not-carry-me" not in data


def test_a_folder_of_one_machine_is_refused_for_several_hosts(tmp_path):
    require_shared(open_root(str(tmp_path)), 1)
    require_shared(open_root("s3://bucket"), 7)
    with pytest.raises(StorageUnavailable, match="2 hosts") as raised:
        require_shared(open_root(str(tmp_path)), 2)
    assert "s3://" in raised.value.fix


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "../a", "a/../../b", "a/.", ".staging/x", "a\0b"]
)
def test_no_key_leaves_the_root_or_enters_its_own_folders(tmp_path, key):
    with pytest.raises(ValueError, match="not a storage key"):
        open_root(str(tmp_path)).write(key, b"")
