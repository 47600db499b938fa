"""A driver that is not the run's any more."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from toy import toy_spec

from sundog.clock import ManualClock
from sundog.errors import RunBusy
from sundog.runs import train
from sundog.runs.driver import driving
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder, new_run


@pytest.fixture
def overtaken(tmp_path):
    """The folder of a driver whose lease ran out, another one having taken over."""
    root, clock = open_root(str(tmp_path)), ManualClock(1_700_000_000.0)
    folder = new_run(root, "r", "r-1", clock=clock)
    lease = folder.acquire("first", ttl_s=10)
    folder.check_lease()
    clock.advance(11)
    RunFolder(root, "r-1", clock=clock).acquire("second")
    with pytest.raises(RunBusy):  # as the thread does that renews it
        lease.renew()
    return folder


class Endless:
    """A trainer whose workers would train on and on."""

    def __init__(self):
        self.ended = threading.Event()

    def fit(self):
        self.ended.wait(60)
        return SimpleNamespace(return_value={"state": "finished"})

    def end(self):
        self.ended.set()


def test_a_driver_that_lost_its_lease_ends_its_workers(overtaken, monkeypatch):
    trainer = Endless()
    monkeypatch.setattr(train, "_elastic", lambda *_: trainer)
    with pytest.raises(RunBusy, match="another driver"):
        train._fit(toy_spec(), overtaken, {}, 2)
    assert trainer.ended.is_set()


def test_a_driver_that_lost_its_lease_registers_nothing(overtaken, monkeypatch):
    monkeypatch.setattr(
        train, "Checkpoints", lambda *_: SimpleNamespace(latest=lambda: SimpleNamespace(step=3))
    )
    registered = []
    monkeypatch.setattr("sundog.runs.register.register", lambda *_: registered.append(1))
    with pytest.raises(RunBusy):
        train._register(toy_spec(register={"as": "toy"}), overtaken, None, None, {})
    assert not registered


def test_the_record_tells_a_killed_driver_from_a_run_that_ended(tmp_path):
    clock = ManualClock(1_700_000_000.0)
    folder = new_run(open_root(str(tmp_path)), "r", "r-1", clock=clock)
    with driving(folder, "train", clock):
        assert folder.record()["cut_off"] is False
    with driving(RunFolder(folder.root, "r-1", clock=clock), "train", clock):
        assert folder.record()["cut_off"] is False
    RunFolder(folder.root, "r-1").update(state="running")  # as a driver leaves it that is killed
    with driving(RunFolder(folder.root, "r-1", clock=clock), "train", clock):
        assert folder.record()["cut_off"] is True
