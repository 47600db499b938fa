"""Eight real processes against one root: every number has one owner, on a folder and on S3."""

import multiprocessing
import os
import time

import pytest
import s3server

from sundog.errors import AlreadyExists, Conflict
from sundog.storage.models import Registry, Signature, TensorSpec
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

_WRITERS, _EACH = 8, 4
_SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


@pytest.fixture(scope="module")
def endpoint():
    with s3server.s3_server() as address:
        yield address


@pytest.fixture(params=["local", "s3"])
def url(request, tmp_path, monkeypatch):
    for name, value in s3server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    if request.param == "local":
        return str(tmp_path / "root")
    endpoint = request.getfixturevalue("endpoint")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return f"s3://{s3server.make_bucket(endpoint)}/race"


def _linger():
    """Widen the window between looking and acting, where a check without a lock would lose."""
    for name in ("link", "replace"):
        real = getattr(os, name)

        def late(*arguments, real=real):
            time.sleep(0.003)
            return real(*arguments)

        setattr(os, name, late)


def _writer(url, path, index, barrier, answers):
    _linger()
    root = open_root(url)
    registry = Registry(root)
    barrier.wait()
    versions, created, run_ids, added = [], 0, [], 0
    for turn in range(_EACH):
        version = registry.register(
            "digits",
            {"model.bin": path},
            kind="torch-export",
            signature=_SIGNATURE,
            metrics={"writer": index},
            lineage={},
        )
        versions.append(version.version)
        run_ids.append(new_run(root, "train").run_id)
        try:
            root.create(f"once/{turn}", f"{index}".encode())
            created += 1
        except AlreadyExists:
            pass
        while True:  # a counter that loses no addition only if every swap is honest
            data, etag = root.read_tagged("counter")
            try:
                root.swap("counter", str(int(data) + 1).encode(), etag)
            except Conflict:
                continue
            added += 1
            break
    answers.put((index, versions, created, run_ids, added))


def test_eight_writers_share_nothing_and_lose_nothing(url, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(1000))
    root = open_root(url)
    root.write("counter", b"0")
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(_WRITERS), context.Queue()
    processes = [
        context.Process(target=_writer, args=(url, path, i, barrier, answers))
        for i in range(_WRITERS)
    ]
    for process in processes:
        process.start()
    given = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    total = _WRITERS * _EACH
    versions = sorted(n for _, mine, _, _, _ in given for n in mine)
    assert versions == list(range(1, total + 1))
    owners = {n: index for index, mine, _, _, _ in given for n in mine}
    registry = Registry(root)
    assert {v.version: int(v.metrics["writer"]) for v in registry.versions("digits")} == owners
    assert registry.verify("digits@1") == registry.verify(f"digits@{total}") == []
    assert sum(created for _, _, created, _, _ in given) == _EACH
    assert len({run_id for _, _, _, run_ids, _ in given for run_id in run_ids}) == total
    assert root.read("counter") == str(total).encode()
