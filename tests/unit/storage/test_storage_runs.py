"""Run folders: ids, the record, the fenced lease, events and logs, deletion."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from sundog.clock import ManualClock
from sundog.errors import NotFound, RunBusy, SundogError
from sundog.storage.gc import orphans
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder, delete_run, list_runs, new_run, open_run


@pytest.fixture
def root(tmp_path):
    return open_root(str(tmp_path / "root"))


@pytest.fixture
def clock():
    return ManualClock(1_700_000_000.0)


def test_run_ids_count_up_and_a_given_one_resumes(root):
    assert [new_run(root, "gpt").run_id for _ in range(2)] == ["gpt-1", "gpt-2"]
    assert new_run(root, "gpt-docs").run_id == "gpt-docs-1"
    run = new_run(root, "gpt", "my-run")
    run.update(state="running", step=7)
    assert new_run(root, "gpt", "my-run").record()["step"] == 7
    assert {r["run_id"] for r in list_runs(root)} == {"gpt-1", "gpt-2", "gpt-docs-1", "my-run"}
    with pytest.raises(NotFound) as raised:
        open_run(root, "my-rum")
    assert "my-run" in raised.value.fix


def test_a_run_id_that_is_no_name_is_refused(root):
    with pytest.raises(SundogError):
        new_run(root, "gpt", "../models/digits")


def test_updates_of_several_writers_are_all_kept(root):
    new_run(root, "gpt")

    def update(index):
        for turn in range(5):
            RunFolder(root, "gpt-1").update(**{f"field{index}": turn})

    threads = [threading.Thread(target=update, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = open_run(root, "gpt-1").record()
    assert [record[f"field{i}"] for i in range(6)] == [4] * 6
    assert record["format"] == 1


def test_a_second_driver_is_refused_until_the_lease_ends(root, clock):
    first = new_run(root, "gpt", clock=clock)
    lease = first.acquire("driver on host-a, pid 7", ttl_s=10)
    second = RunFolder(root, "gpt-1", clock=clock)
    with pytest.raises(RunBusy, match=r"driver on host-a, pid 7.*22:13:30 UTC \(in 10 s\)"):
        second.acquire("driver on host-b")
    clock.advance(8)
    lease.renew()
    clock.advance(8)
    assert not lease.lost
    with pytest.raises(RunBusy):
        second.acquire("driver on host-b")
    assert second.driver() == "driver on host-a, pid 7"
    clock.advance(3)
    assert lease.lost
    assert second.acquire("driver on host-b").epoch == lease.epoch + 1


def test_a_stale_driver_can_write_nothing_any_more(root, clock):
    stale = new_run(root, "gpt", clock=clock)
    old = stale.acquire("old", ttl_s=10)
    stale.update(state="running", step=5)
    clock.advance(11)
    new = RunFolder(root, "gpt-1", clock=clock)
    new.acquire("new")
    new.update(step=6)
    with pytest.raises(RunBusy, match="driven by new"):
        stale.update(step=99)
    with pytest.raises(RunBusy, match="driven by new"):
        stale.require_lease()
    with pytest.raises(RunBusy):
        old.renew()
    assert old.lost
    old.release()  # takes nothing from the new holder
    assert new.driver() == "new"
    new.require_lease()
    assert open_run(root, "gpt-1").record()["step"] == 6


def test_a_stale_driver_whose_clock_is_behind_is_stopped_all_the_same(root, clock):
    behind = ManualClock(clock.now_s())
    stale = new_run(root, "gpt", clock=behind)
    old = stale.acquire("old", ttl_s=10)
    clock.advance(60)
    RunFolder(root, "gpt-1", clock=clock).acquire("new")
    assert not old.lost  # by its own clock all is well
    with pytest.raises(RunBusy):
        stale.update(step=99)
    with pytest.raises(RunBusy):
        old.renew()


def test_a_released_lease_lets_the_next_driver_in_at_once(root, clock):
    run = new_run(root, "gpt", clock=clock)
    lease = run.acquire("first")
    lease.release()
    lease.release()
    assert lease.lost
    assert run.driver() is None
    assert RunFolder(root, "gpt-1", clock=clock).acquire("second").epoch == 2


HOLD = """
import sys, time
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder
lease = RunFolder(open_root(sys.argv[1]), "gpt-1").acquire("killed", ttl_s=3600)
print(lease.epoch, flush=True)
time.sleep(3600)
"""


def test_a_killed_driver_s_lease_is_free_at_once_on_its_own_machine(root, tmp_path):
    run = new_run(root, "gpt")
    driver = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "root")], stdout=subprocess.PIPE, text=True
    )
    try:
        epoch = int(driver.stdout.readline())
        with pytest.raises(RunBusy):
            run.acquire("too early")
        assert run.driver() == "killed"
        os.kill(driver.pid, signal.SIGSTOP)  # a process that hangs is not dead
        with pytest.raises(RunBusy):
            run.acquire("too early")
    finally:
        driver.kill()
    os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)  # dead, its parent has not looked yet
    assert run.driver() is None
    driver.wait()
    assert run.driver() is None
    assert run.acquire("next").epoch == epoch + 1


@pytest.mark.parametrize("other", ["host", "boot", "pids"])
def test_a_lease_from_elsewhere_is_never_taken_for_dead(root, other):
    run = new_run(root, "gpt")
    run.acquire("gone", ttl_s=3600)
    key = run.key("lease.json")
    process = json.loads(root.read(key))["process"]

    def holder(**changes):
        document = json.loads(root.read(key)) | {"process": process | changes}
        root.write(key, json.dumps(document).encode())

    holder(**{other: "elsewhere"}, pid=2**22 + 1)  # no machine gives out that pid
    with pytest.raises(RunBusy):
        RunFolder(root, "gpt-1").acquire("next")
    holder(started=process["started"] - 1)  # our own pid, but given out anew since
    assert RunFolder(root, "gpt-1").acquire("next").epoch == 2


def test_a_lease_of_an_older_version_runs_out_as_ever(root):
    run = new_run(root, "gpt")
    run.acquire("old", ttl_s=3600)
    document = json.loads(root.read(run.key("lease.json")))
    del document["process"]
    root.write(run.key("lease.json"), json.dumps(document).encode())
    assert run.driver() == "old"
    with pytest.raises(RunBusy):
        RunFolder(root, "gpt-1").acquire("next")


def test_of_eight_that_acquire_at_once_one_drives(root):
    new_run(root, "gpt")
    held, refused, barrier = [], [], threading.Barrier(8)

    def acquire(index):
        barrier.wait()
        try:
            held.append(RunFolder(root, "gpt-1").acquire(f"driver {index}", ttl_s=60))
        except RunBusy as error:
            refused.append(str(error))

    threads = [threading.Thread(target=acquire, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert len(refused) == 7
    assert all(held[0].holder in message for message in refused)


def test_a_kept_lease_is_renewed_in_the_background_and_released(root):
    run = new_run(root, "gpt")
    with run.acquire("me", ttl_s=0.6).kept() as lease:
        renewed = threading.Event()
        first = root.read(run.key("lease.json"))
        for _ in range(200):
            if root.read(run.key("lease.json")) != first:
                renewed.set()
                break
            threading.Event().wait(0.02)
        assert renewed.is_set()
        assert not lease.lost
    assert run.driver() is None


def test_events_come_back_in_order_and_a_torn_line_is_skipped(root, clock):
    run = new_run(root, "gpt", clock=clock)
    run.event("run.started", workers=2)
    clock.advance(1)
    run.event("run.finished", loss=float("nan"))
    path = root.local_path(run.key("events.jsonl"))
    with path.open("ab") as file:
        file.write(b'{"event": "cut off')
    found = run.events()
    assert [e["event"] for e in found] == ["run.started", "run.finished"]
    assert [e["at_s"] for e in found] == [1_700_000_000.0, 1_700_000_001.0]
    assert found[0]["workers"] == 2


def test_logs_are_kept_by_rank_and_followed_to_the_end(root, clock):
    run = new_run(root, "gpt", clock=clock)
    run.append_log(10, "ten\n")
    run.append_log(2, "two\nunfinished")
    run.append_log("driver", "hello\n")
    assert run.ranks() == ["2", "10", "driver"]
    assert list(run.logs(2)) == ["two", "unfinished"]
    assert list(run.logs()) == ["[2] two", "[2] unfinished", "[10] ten", "[driver] hello"]

    class Turn(ManualClock):
        def sleep(self, seconds):
            run.append_log(2, " line\nlast\n")
            run.update(state="finished")

    reader = RunFolder(root, "gpt-1", clock=Turn())
    assert list(reader.logs(2, follow=True)) == ["two", "unfinished line", "last"]


def test_a_run_folder_travels_without_its_lease(root):
    run = new_run(root, "gpt")
    run.acquire("me")
    copy = pickle.loads(pickle.dumps(run))
    copy.append_log(0, "from a worker\n")
    assert list(run.logs(0)) == ["from a worker"]
    with pytest.raises(RunBusy):
        copy.require_lease()


def test_a_deleted_run_is_gone_and_its_number_stays_taken(root, clock):
    run = new_run(root, "gpt", clock=clock)
    run.event("run.started")
    root.write(run.key("checkpoints/10/model.pt"), b"x")
    lease = run.acquire("me")
    with pytest.raises(RunBusy, match="me"):
        delete_run(root, "gpt-1", clock=clock)
    assert run.checkpoint_steps() == [10]
    lease.release()
    delete_run(root, "gpt-1", clock=clock)
    with pytest.raises(NotFound, match="was deleted"):
        open_run(root, "gpt-1")
    assert list_runs(root) == []
    assert not root.exists("runs/gpt-1/checkpoints/10/model.pt")
    assert new_run(root, "gpt", clock=clock).run_id == "gpt-2"
    # Its own id may be asked for again and starts empty, above the old epoch.
    again = new_run(root, "gpt", "gpt-1", clock=clock)
    assert again.record()["state"] == "queued"
    assert again.events() == []
    with pytest.raises(RunBusy):
        run.update(step=99)  # the driver of the deleted run, with its lease of long ago
    assert again.acquire("you").epoch > 2


def test_what_an_interrupted_deletion_left_is_collected(root):
    new_run(root, "gpt")
    delete_run(root, "gpt-1")
    root.write("runs/gpt-1/checkpoints/10/model.pt", b"x")
    assert [o.key for o in orphans(root, older_than_s=-60)] == [
        "runs/gpt-1/checkpoints/10/model.pt"
    ]
