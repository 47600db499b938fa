"""The folder backend's own corners: creation without hard links, readers during writes."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sundog.errors import AlreadyExists, StorageUnavailable
from sundog.storage.root import open_root


@pytest.fixture
def root(tmp_path):
    return open_root(str(tmp_path / "root"))


def _race(root, key):
    won, barrier = [], threading.Barrier(8)

    def create(index):
        barrier.wait()
        try:
            root.create(key, str(index).encode())
        except AlreadyExists:
            return
        won.append(index)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_a_file_system_without_hard_links_has_one_winner_too(root, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    for turn in range(20):
        (winner,) = _race(root, f"k/{turn}")
        assert root.read(f"k/{turn}") == str(winner).encode()
    assert list(root.leftovers()) == []


def test_readers_see_the_old_bytes_or_the_new(root):
    sizes, stop = {10, 1 << 20}, threading.Event()
    root.write("k", b"x" * 10)
    seen = set()

    def read():
        while not stop.is_set():
            seen.add(len(root.read("k")))

    thread = threading.Thread(target=read)
    thread.start()
    for turn in range(20):
        root.write("k", b"x" * (10 if turn % 2 else 1 << 20))
    stop.set()
    thread.join()
    assert seen <= sizes


def test_folders_vanish_with_their_last_file_and_come_back(root):
    def churn(name):
        for _ in range(200):
            root.write(f"a/b/{name}", b"")
            root.delete(f"a/b/{name}")

    with ThreadPoolExecutor() as pool:
        list(pool.map(churn, "xyz"))  # raises what a thread raised
    assert root.children("") == []


def test_a_missing_source_is_an_error_and_not_a_file(root, tmp_path):
    with pytest.raises(StorageUnavailable):
        root.upload(tmp_path / "none", "k")
    assert list(root.entries()) == []
    assert list(root.leftovers()) == []


def test_a_download_that_cannot_be_written_blames_this_machine_and_leaves_nothing(root, tmp_path):
    root.write("k", b"x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailable, match="cannot copy k to") as raised:
        root.download("k", tmp_path / "file" / "below")
    assert "TMPDIR" in raised.value.fix
    assert {p.name for p in tmp_path.iterdir()} == {"file", "root"}
