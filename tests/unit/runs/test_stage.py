"""A checkpoint on a node's own disk, for the time that the storage root does not have it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_loop import Seat, parameters, trained
from toy import Toy, toy_spec

from sundog.errors import RunError
from sundog.runs import stage
from sundog.runs.interval import Cadence
from sundog.runs.loop import STOP, Loop
from sundog.runs.saver import Saver
from sundog.runs.stage import Stage
from sundog.runs.verify import verify
from sundog.storage.local import LocalRoot
from sundog.storage.root import open_root


class Far(LocalRoot):
    """A root that is elsewhere. What is uploaded while `stuck` never arrives."""

    is_local = False
    stuck = False
    under_way = threading.Event()

    def upload(self, path, key):
        if Far.stuck:
            Far.under_way.set()
            threading.Event().wait()
        super().upload(path, key)


@pytest.fixture(autouse=True)
def disk(tmp_path, monkeypatch):
    monkeypatch.setenv(stage.VARIABLE, str(tmp_path / "nvme"))
    monkeypatch.setattr(Far, "stuck", False)
    monkeypatch.setattr(Far, "under_way", threading.Event())
    return tmp_path / "nvme"


@pytest.fixture
def root(tmp_path):
    return Far(f"file://{tmp_path}/far")


def saver(root, notes=None, every=4):
    def note(event, fields):
        if notes is not None:
            notes.append((event, fields))

    here = Stage.of(root, "runs/r")
    return Saver(root, "runs/r", keep=2, cadence=Cadence(every), note=note, stage=here)


def files(disk):
    return sorted(p.name for p in disk.rglob("*") if p.is_file())


def cut_off(root):
    """A run whose process ends in step 9, while step 8 is being uploaded."""
    steps = iter([*[0] * 6, None, 0, 0, STOP])
    source = saver(root)

    def asked():
        flag = next(steps)
        if flag is None:
            source.settle()
            Far.stuck = True
            return 0
        if flag == STOP:
            assert Far.under_way.wait(30)
            raise KeyboardInterrupt
        return flag

    with pytest.raises(KeyboardInterrupt):
        trained(saver=source, asked=asked)
    Far.stuck = False


def test_a_run_goes_on_from_the_disk_of_its_node(root, disk):
    whole, _, curve = trained()
    cut_off(root)
    assert saver(root).checkpoints.latest().step == 4
    assert len(files(disk)) == 2
    notes: list = []
    again, outcome, rest = trained(saver=saver(root, notes))
    assert outcome.state == "finished"
    assert notes[0] == ("staged", {"step": 8})
    assert rest == curve[8:]
    assert torch.equal(parameters(again), parameters(whole))
    assert verify(root, "r").good
    assert files(disk) == []  # the root has it all


def die_uploading(url, disk):
    os.environ[stage.VARIABLE] = disk

    class Fatal(Far):
        def upload(self, path, key):
            if path.name.startswith("8-"):
                os.kill(os.getpid(), signal.SIGKILL)
            super().upload(path, key)

    trained(saver=saver(Fatal(url)))


def test_a_killed_process_leaves_its_last_checkpoint(root, disk):
    whole, *_ = trained()
    process = multiprocessing.get_context("spawn").Process(
        target=die_uploading, args=(root.url, str(disk))
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    notes: list = []
    again, _, rest = trained(saver=saver(root, notes))
    assert (notes[0], len(rest)) == (("staged", {"step": 8}), 4)
    assert torch.equal(parameters(again), parameters(whole))
    assert verify(root, "r").good
    assert files(disk) == []


def test_the_others_get_it_from_the_worker_whose_node_has_it(root, tmp_path, monkeypatch):
    cut_off(root)
    barrier, table = threading.Barrier(2), {}

    def work(rank):
        loop = Loop(toy_spec(), Toy())
        loop.saver = found[rank]
        loop.join(Seat(rank, barrier, table))
        return loop

    found = [None, saver(root)]
    monkeypatch.setenv(stage.VARIABLE, str(tmp_path / "another node"))
    found[0] = saver(root)
    with ThreadPoolExecutor(2) as pool:
        loops = list(pool.map(work, range(2)))
    assert [loop.step for loop in loops] == [8, 8]
    assert torch.equal(parameters(loops[0]), parameters(loops[1]))


def test_what_the_root_has_is_not_read_from_the_disk(root, disk):
    notes: list = []
    trained(toy_spec(steps=8), saver=saver(root, notes))
    assert [event for event, _ in notes] == ["checkpoint", "checkpoint"]
    assert all(0 < f["local_s"] <= f["took_s"] for _, f in notes)
    assert saver(root).staged(0) == 0
    cut_off_at = saver(root)
    cut_off_at._stage.write(8, {"step": 8}, {"ledger": []})
    assert cut_off_at.staged(8) == 0
    assert cut_off_at.staged(7) == 8


@pytest.mark.parametrize("harm", ["bytes", "ledger", "manifest"])
def test_a_bad_one_is_not_used(root, disk, harm):
    cut_off(root)
    (state,), (manifest,) = disk.rglob("*.pt"), disk.rglob("*.json")
    if harm == "bytes":
        state.write_bytes(state.read_bytes()[:-1])
    elif harm == "manifest":
        manifest.write_text("{")
    else:  # the run was deleted from the root meanwhile
        root.delete(f"runs/r/ledger/{json.loads(manifest.read_text())['about']['ledger'][-1]}")
    assert saver(root).staged(0) == 0


def test_another_plan_is_refused(root):
    cut_off(root)
    with pytest.raises(RunError, match="seed 0 → 5"):
        trained(toy_spec(seed=5), saver=saver(root))


def test_a_full_disk_is_no_reason_not_to_save(root, monkeypatch, capsys):
    cannot = os.strerror(28)

    def full(state, place):
        if hasattr(place, "parent"):
            raise OSError(28, cannot)
        return save(state, place)

    save = torch.save
    monkeypatch.setattr(torch, "save", full)
    _, outcome, _ = trained(saver=saver(root))
    assert outcome.state == "finished"
    assert saver(root).checkpoints.latest().step == 12
    assert cannot in capsys.readouterr().out


def test_a_folder_that_others_can_write_to_is_not_trusted(root, disk, capsys):
    place = stage.place()
    assert place.stat().st_mode & 0o777 == 0o700
    place.chmod(0o777)
    assert Stage.of(root, "runs/r") is None
    assert "not this user's own" in capsys.readouterr().out


def test_there_is_none_where_the_root_is_a_disk(tmp_path):
    assert Stage.of(open_root(str(tmp_path)), "runs/r") is None


def test_what_a_dead_process_left_goes_with_the_next_one(root, disk):
    here = Stage.of(root, "runs/r")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    path = here.write(8, {"step": 8}, {"ledger": []})
    for file in (path, path.with_suffix(".json")):
        file.rename(file.with_name(file.name.replace(str(os.getpid()), dead)))
    living = here.write(4, {"step": 4}, {"ledger": []})
    other = living.with_name(f"4-{os.getppid()}.pt")
    living.rename(other)  # of a process that is still uploading it
    here.drop(7)
    assert dead in "".join(files(disk))
    here.drop(12)
    assert files(disk) == [other.name]


def test_runs_that_never_came_back_are_forgotten(root, disk):
    old = stage.place() / "0123456789abcdef"
    old.mkdir()
    (old / "8-1.pt").write_bytes(b"x")
    Stage.of(root, "runs/r")
    assert old.exists()
    os.utime(old, (0, 0))
    Stage.of(root, "runs/r")
    assert not old.exists()
