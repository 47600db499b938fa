"""Run folders on S3, which has no append: parts, followed and ordered, and the fenced lease."""

import multiprocessing
import subprocess
import sys
import threading

import pytest
import s3server

from sundog.clock import ManualClock
from sundog.errors import RunBusy
from sundog.storage.appended import Appender, lines, read_from
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder, delete_run, new_run


@pytest.fixture(scope="module")
def endpoint():
    with s3server.s3_server() as address:
        yield address


@pytest.fixture
def root(endpoint, monkeypatch):
    for name, value in s3server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return open_root(f"s3://{s3server.make_bucket(endpoint)}/p")


def test_many_lines_become_few_parts_in_their_order(root):
    clock = ManualClock(1_700_000_000.0)
    appender = Appender(root, "runs/a/logs/0.log", clock=clock)
    expected = []
    for index in range(100):
        expected.append(f"line {index}")
        appender.append(f"line {index}\n".encode())
        clock.advance(0.1)  # ten a second for ten seconds
    appender.flush()
    assert list(lines(root, "runs/a/logs/0.log")) == expected
    assert len(root.children("runs/a/logs/0.log.parts")) <= 12


def test_what_was_gathered_is_written_without_another_line(root):
    appender = Appender(root, "log")
    appender.append(b"first\n")
    appender.append(b"second\n")  # within a second of the first: waits for its part
    for _ in range(100):
        if list(lines(root, "log")) == ["first", "second"]:
            break
        threading.Event().wait(0.1)
    assert list(lines(root, "log")) == ["first", "second"]


def test_a_reader_follows_from_its_position(root):
    clock = ManualClock(1_700_000_000.0)
    appender = Appender(root, "log", clock=clock)
    appender.append(b"one\n")
    data, position = read_from(root, "log")
    assert data == b"one\n"
    assert read_from(root, "log", position) == (b"", position)
    clock.advance(2)
    appender.append(b"two\n")
    assert read_from(root, "log", position)[0] == b"two\n"


def test_what_is_gathered_at_exit_is_written(root):
    code = (
        "import sys; from sundog.storage.root import open_root\n"
        "from sundog.storage.runs import RunFolder\n"
        "run = RunFolder(open_root(sys.argv[1]), 'gpt-1')\n"
        "for word in ('one', 'two', 'three'): run.append_log(0, word + chr(10))\n"
    )
    subprocess.run([sys.executable, "-c", code, root.url], check=True)
    assert list(RunFolder(root, "gpt-1").logs(0)) == ["one", "two", "three"]


def _worker(run, rank):
    for index in range(3):
        run.append_log(rank, f"{rank}.{index}\n")
        run.event("worker.line", rank=rank, index=index)
    run.flush()


def test_workers_of_several_processes_log_to_one_run(root):
    run = new_run(root, "gpt")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(run, rank)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert list(run.logs(1)) == ["1.0", "1.1", "1.2"]
    assert run.ranks() == ["0", "1"]
    found = [(e["rank"], e["index"]) for e in run.events()]
    assert sorted(found) == [(r, i) for r in range(2) for i in range(3)]
    delete_run(root, "gpt-1")
    assert sorted(e.key for e in root.entries("runs")) == [
        "runs/gpt-1/lease.json", "runs/gpt-1/record.json",
    ]  # fmt: skip


def test_a_stale_driver_is_fenced_on_s3_too(root):
    clock = ManualClock(1_700_000_000.0)
    stale = new_run(root, "gpt", clock=clock)
    lease = stale.acquire("old", ttl_s=10)
    with pytest.raises(RunBusy, match=r"driven by old; its lease ends at 22:13:30 UTC"):
        RunFolder(root, "gpt-1", clock=clock).acquire("new")
    clock.advance(11)
    new = RunFolder(root, "gpt-1", clock=clock)
    new.acquire("new")
    for late in (lambda: stale.update(step=9), lease.renew, stale.require_lease):
        with pytest.raises(RunBusy):
            late()
    assert new.update(step=1)["step"] == 1
