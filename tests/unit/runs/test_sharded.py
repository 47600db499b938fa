"""FSDP2 on gloo with real processes against the single-process result, and its checkpoints."""

from __future__ import annotations

import functools
import multiprocessing as mp
import shutil
import socket
import tempfile
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from toy import Toy, toy_spec

from sundog.errors import RunError, StorageUnavailable
from sundog.runs.checkpoint import Checkpoints
from sundog.runs.exchange import Alone, Group
from sundog.runs.interval import Cadence
from sundog.runs.loop import HANDOVER, Loop
from sundog.runs.processes import Job, LocalGroup
from sundog.runs.saver import Saver, unpack
from sundog.runs.sharded_saver import ShardedSaver
from sundog.runs.verify import verify
from sundog.storage.root import open_root

FSDP = {"layout": "fsdp", "exact": False, "clip": 1.0, "schedule": {"shape": "cosine"}}
STEPS = 20


@functools.cache
def single() -> tuple[np.ndarray, float]:
    """One process with the whole model."""
    loop = Loop(toy_spec(steps=STEPS, **{**FSDP, "layout": "ddp"}), Toy())
    loop.join(Alone())
    outcome = loop.run()
    return torch.cat([p.detach().flatten() for p in loop.params]).numpy(), outcome.metrics["error"]


def saved(root, step: int) -> np.ndarray:
    """The whole model's parameters out of a checkpoint, as registering a model reads them."""
    state = unpack(Checkpoints(root, "runs/local/checkpoints").read(step))
    return torch.cat([t.flatten() for t in state["model"].values()]).numpy()


def test_three_shards_resized_to_two_come_to_the_single_process_s_result(tmp_path):
    spec = toy_spec(steps=STEPS, checkpoint={"every": 5, "keep": 9}, **FSDP)
    root = open_root(str(tmp_path))
    with LocalGroup(Job(spec, Toy, str(tmp_path))) as group:
        group.grow(3)
        group.form()
        assert group.wait_for(7)
        group.ask(HANDOVER)  # all save their shards, then leave
        assert set(group.settle()) <= {"yielded", "finished"}
        group.form(2)  # restored at another size
        assert {m for m in group.settle() if m != "yielded"} == {"finished"}
        metrics = group.result().metrics
    parameters, error = single()
    assert np.abs(saved(root, STEPS) - parameters).max() < 1e-5
    assert metrics["error"] == pytest.approx(error, abs=1e-4)
    verdict = verify(root, "local")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, STEPS)


@pytest.mark.parametrize(
    "world",
    [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.long)],
)
def test_a_lost_shard_goes_back_to_the_checkpoint(tmp_path, world):
    spec = toy_spec(steps=STEPS, checkpoint={"every": 5, "keep": 9}, **FSDP)
    with LocalGroup(Job(spec, Toy, str(tmp_path))) as group:
        group.grow(world)
        group.form()
        group.wait_for(12)
        group.kill(world - 1)
        assert set(group.settle()) <= {"lost", "finished"}
        group.form()
        assert set(group.settle()) == {"finished"}
    assert np.abs(saved(open_root(str(tmp_path)), STEPS) - single()[0]).max() < 1e-5
    assert verify(open_root(str(tmp_path)), "local").good


def test_a_full_scratch_disk_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    spec = toy_spec(steps=STEPS, checkpoint={"every": 5, "keep": 9}, **FSDP)
    loop = Loop(spec, Toy())
    loop.saver = ShardedSaver(open_root(str(tmp_path)), "runs/r", keep=2, cadence=Cadence(5))
    loop.join(Alone())
    staged = loop.saver._lay_down

    def gone(state, folder):
        done = staged(state, folder)
        shutil.rmtree(folder)
        return done

    monkeypatch.setattr(loop.saver, "_lay_down", gone)
    with pytest.raises(RunError, match=r"checkpoint of step 5 could not be written: FileNotFound"):
        loop.run()


def save_where_one_cannot(rank, port, root, out):
    """A worker of two; the second one's storage refuses."""
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    spec = toy_spec(steps=STEPS, checkpoint={"every": 5, "keep": 9}, **FSDP)
    loop = Loop(spec, Toy())
    loop.saver = ShardedSaver(open_root(root), "runs/r", keep=2, cadence=Cadence(5))
    loop.join(Group(exact=False))
    if rank:

        def refuse(step, parts):
            raise StorageUnavailable("the disk is full", "make room")

        loop.saver.checkpoints.put = refuse
    try:
        outcome = loop.run()
        out.put((rank, outcome.why))
    except StorageUnavailable as error:
        out.put((rank, error.message))


def test_a_worker_that_cannot_write_its_shards_keeps_nobody_waiting(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    out = context.Queue()
    workers = [
        context.Process(
            target=save_where_one_cannot, args=(r, port, str(tmp_path), out), daemon=True
        )
        for r in range(2)
    ]
    for worker in workers:
        worker.start()
    told = dict(out.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(30)
        worker.kill()
    assert set(told) == {0, 1}
    assert all("the disk is full" in why for why in told.values()), told
    assert Checkpoints(open_root(str(tmp_path)), "runs/r/checkpoints").latest() is None


def test_one_worker_alone_saves_and_goes_on_as_any_number(tmp_path):
    def run(steps: int, **changes):
        loop = Loop(toy_spec(steps=steps, **{**FSDP, **changes}), Toy())
        loop.saver = ShardedSaver(
            open_root(str(tmp_path)), "runs/local", keep=2, cadence=Cadence(4)
        )
        loop.join(Alone())
        return loop.run()

    constant = {"schedule": {"shape": "constant"}}
    assert run(8, **constant).state == "finished"
    assert run(STEPS, **constant).state == "finished"
    assert verify(open_root(str(tmp_path)), "local").steps == STEPS
    whole = Loop(toy_spec(steps=STEPS, exact=False, clip=1.0), Toy())
    whole.join(Alone())
    whole.run()
    flat = torch.cat([p.detach().flatten() for p in whole.params]).numpy()
    assert np.abs(saved(open_root(str(tmp_path)), STEPS) - flat).max() < 1e-5


@pytest.mark.parametrize("first", ["ddp", "fsdp"])
def test_a_run_goes_on_in_the_other_layout_with_its_optimizer_and_ledger(tmp_path, first):
    root = open_root(str(tmp_path))
    for layout, steps in ((first, 8), ({"ddp": "fsdp", "fsdp": "ddp"}[first], STEPS)):
        # The schedule follows all samples, so the length stays; the first part is asked to hand over.
        spec = toy_spec(
            steps=STEPS, checkpoint={"every": 4, "keep": 9}, **{**FSDP, "layout": layout}
        )
        with LocalGroup(Job(spec, Toy, str(tmp_path))) as group:
            group.grow(2)
            group.form()
            if steps < STEPS:
                group.wait_for(steps)
                group.ask(HANDOVER)
            states = group.settle()
    assert {m for m in states if m != "yielded"} == {"finished"}
    assert np.abs(saved(root, STEPS) - single()[0]).max() < 1e-5
    verdict = verify(root, "local")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, STEPS)


def test_a_run_that_gives_up_exactness_goes_on_with_fewer_micro_batches(tmp_path):
    root = open_root(str(tmp_path))
    for exact, steps in ((True, 6), (False, 12)):
        loop = Loop(toy_spec(steps=steps, exact=exact, checkpoint={"every": 3}), Toy())
        loop.saver = Saver(root, "runs/r", keep=2, cadence=Cadence(3))
        loop.join(Alone())
        assert loop.run().state == "finished"
    assert loop.plan.count == 4
    assert verify(root, "r").good
    exact = Loop(toy_spec(steps=14, checkpoint={"every": 3}), Toy())
    exact.saver = Saver(root, "runs/r", keep=2, cadence=Cadence(3))
    with pytest.raises(RunError, match="micro-batches 4 → 8"):
        exact.join(Alone())


def test_a_checkpoint_of_another_sharded_model_is_refused(tmp_path):
    root = open_root(str(tmp_path))

    class Wider(Toy):
        def model(self):
            return torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Linear(9, 1))

    for recipe in (Toy(), Wider()):
        loop = Loop(toy_spec(steps=8, layout="fsdp", exact=False), recipe)
        loop.saver = ShardedSaver(root, "runs/local", keep=2, cadence=Cadence(4))
        if isinstance(recipe, Wider):
            with pytest.raises(RunError, match="of another model"):
                loop.join(Alone())
        else:
            loop.join(Alone())
            loop.run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "write exact: false"),
        ({"exact": False, "precision": "fp16"}, "no loss scale for fp16"),
        ({"exact": False, "init_from": "digits@1"}, "cannot begin from init_from"),
    ],
)
def test_what_the_layout_cannot_do_is_not_claimed(changes, message):
    with pytest.raises(ValueError, match=message):
        toy_spec(layout="fsdp", **changes)
