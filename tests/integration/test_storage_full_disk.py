"""A storage root whose disk is full, for real: one clear message, and nothing half-written."""

import contextlib
import os
import subprocess
import sys

import pyarrow
import pytest

from sundog.errors import StorageUnavailable
from sundog.storage.datasets import list_datasets, write_dataset
from sundog.storage.gc import orphans
from sundog.storage.models import Registry, Signature, TensorSpec
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

_SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))
_SIZE = 1 << 20


@pytest.fixture
def full(tmp_path):
    """A root on a file system of 1 MiB of its own. Needs the right to mount."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount the small file system; the file size limit is tested")
    try:
        yield open_root(str(place / "root"))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _files(root):
    return [path for path in root.base.rglob("*") if path.is_file() and ".locks" not in path.parts]


def test_a_registration_on_a_full_disk(full, tmp_path):
    registry = Registry(full)
    small, large = tmp_path / "small.bin", tmp_path / "large.bin"
    small.write_bytes(b"x" * 1000)
    large.write_bytes(b"x" * 2 * _SIZE)

    def register(path):
        return registry.register(
            "digits", {"model.pt2": path}, kind="torch-export", signature=_SIGNATURE, metrics={},
            lineage={}, alias="champion",
        )  # fmt: skip

    assert register(small).version == 1
    before = _files(full)
    with pytest.raises(StorageUnavailable, match="the disk is full") as raised:
        register(large)
    assert str(full.url) in raised.value.message
    assert "sundog gc" in raised.value.fix
    assert _files(full) == before
    assert [v.version for v in registry.versions("digits")] == [1]
    assert registry.verify("digits@champion") == []
    assert orphans(full, older_than_s=-60) == []
    assert register(small).version == 2


def test_a_dataset_a_record_and_a_log_on_a_full_disk(full):
    run = new_run(full, "gpt")
    run.update(step=1)
    run.append_log(0, "first\n")
    table = pyarrow.table({"x": os.urandom(2 * _SIZE).hex().split("0")})
    with pytest.raises(StorageUnavailable, match="the disk is full"):
        write_dataset(full, "rows", {"train": table})
    assert list_datasets(full) == []
    filler = full.base / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    with pytest.raises(StorageUnavailable, match="the disk is full"):
        run.update(step=2)
    with pytest.raises(StorageUnavailable, match="the disk is full"):
        run.append_log(0, "x" * 5000 + "\n")
    filler.unlink()
    assert run.record()["step"] == 1
    assert list(run.logs(0)) == ["first"]
    run.update(step=2)
    run.append_log(0, "second\n")
    assert list(run.logs(0)) == ["first", "second"]


_LIMITED = """
import resource, signal, sys
from sundog.errors import StorageUnavailable
from sundog.storage.root import open_root
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
root = open_root(sys.argv[1])
root.create("a/small", b"x" * 100)
for write in (root.write, root.create, lambda k, d: root.swap(k, d, None)):
    try:
        write("a/large", b"x" * 5000)
    except StorageUnavailable as error:
        print(error.message)
"""


def test_a_file_size_limit_reads_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path / "root")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count("the disk is full (File too large)") == 3
    root = open_root(str(tmp_path / "root"))
    assert [e.key for e in root.entries()] == ["a/small"]
    assert list(root.leftovers()) == []


def test_a_folder_that_may_not_be_written(tmp_path):
    """Where even root is refused: below a file, and in /proc."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "root", "/proc/sundog"):
        with pytest.raises(StorageUnavailable, match="cannot write") as raised:
            open_root(str(place)).write("a", b"")
        assert "another root" in raised.value.fix


def test_a_writer_that_is_killed_leaves_nothing_visible(tmp_path):
    """kill -9 between the staging file and its rename."""
    code = (
        "import os, signal, sys\n"
        "from sundog.storage.root import open_root\n"
        "from sundog.storage.local import LocalRoot\n"
        "LocalRoot._place = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_root(sys.argv[1]).create('models/digits/1/model.json', b'x' * 100)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "root")], check=False)
    assert done.returncode == -9
    root = open_root(str(tmp_path / "root"))
    assert list(root.entries()) == []
    assert Registry(root).models() == []
    (found,) = orphans(root, older_than_s=-60)
    assert found.leftover
    root.delete_leftover(found)
    assert orphans(root, older_than_s=-60) == []
    root.create("models/digits/1/model.json", b"x")  # no lock was left behind
