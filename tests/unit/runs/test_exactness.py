"""The same bits at any world size, and through kills and resizes: real processes, real gloo."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Toy, toy_spec

from sundog.runs.exchange import Alone
from sundog.runs.loop import YIELD, Loop
from sundog.runs.processes import Ended, Job, LocalGroup
from sundog.runs.reduction import Node, add_up, partials
from sundog.runs.sampler import share
from sundog.runs.verify import verify
from sundog.storage.root import open_root


@functools.cache
def undisturbed(steps: int) -> Ended:
    loop, curve = Loop(toy_spec(steps=steps), Toy()), {}
    loop.trace = curve.__setitem__
    loop.join(Alone())
    assert loop.run().state == "finished"
    parameters = torch.cat([p.detach().flatten() for p in loop.params]).numpy()
    return Ended(curve, parameters, loop.metrics)


def same(one, other) -> bool:
    return one.curve == other.curve and np.array_equal(one.parameters, other.parameters)


@pytest.mark.parametrize(
    "world", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_any_world_size_gives_the_same_bits(world):
    with LocalGroup(Job(toy_spec(steps=12), Toy)) as group:
        group.grow(world)
        group.form()
        assert set(group.settle()) == {"finished"}
        ended = group.result()
    assert same(ended, undisturbed(12))
    assert ended.metrics == undisturbed(12).metrics


def test_resizes_and_kills_change_no_bit_and_lose_no_sample(tmp_path):
    spec = toy_spec(steps=40, checkpoint={"every": 10, "keep": 2})
    with LocalGroup(Job(spec, Toy, str(tmp_path))) as group:
        group.grow(3)
        group.form()
        assert group.wait_for(6)
        group.ask(YIELD)  # shrink at a step boundary: nothing is read from disk
        group.settle()
        group.form(2)
        if group.wait_for(14):
            group.kill(0)  # rank 0, which holds the checkpoints
        group.settle()
        group.grow(2)
        group.form()
        if group.wait_for(25):
            group.kill(2)
        group.settle()
        group.form()
        assert set(group.settle()) == {"finished"}
        ended = group.result()
        curve = group.curve()
    whole = undisturbed(40)
    assert np.array_equal(ended.parameters, whole.parameters)
    assert ended.metrics == whole.metrics
    assert curve == whole.curve
    verdict = verify(open_root(str(tmp_path)), "local")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 40)
    assert len(verdict.worlds) > 1


def test_when_all_are_lost_the_checkpoint_is_read(tmp_path):
    spec = toy_spec(steps=20, checkpoint={"every": 5, "keep": 2})
    with LocalGroup(Job(spec, Toy, str(tmp_path))) as group:
        group.grow(1)
        group.form()
        group.wait_for(12)
        group.kill(0)
        group.grow(2)
        group.form()
        assert set(group.settle()) == {"finished"}
        ended = group.result()
    assert min(ended.curve) > 5
    assert np.array_equal(ended.parameters, undisturbed(20).parameters)
    assert verify(open_root(str(tmp_path)), "local").good


@given(splits=st.lists(st.integers(1, 4), min_size=2, max_size=5))
@settings(max_examples=3, deadline=None)
def test_any_schedule_of_world_sizes_in_one_process(splits):
    """Every rank of every world, computed one after the other: no group needed to see the bits."""

    class Pretended(Alone):
        """Rank by rank: collects each rank's partial sums, then adds them as a group would."""

        def __init__(self, loop):
            self.loop = loop

        def sum(self, count, slots, header):
            world = splits[self.loop.step % len(splits)]
            known = {}
            for rank in range(world):
                for node in partials(count, *share(count, world, rank)):
                    slot = torch.zeros_like(slots[0])
                    self.loop.replica.subtree(self.loop.step, node, slot, {})
                    known[node] = slot
            return add_up(Node(0, count), known, torch.add), [list(header)]

    loop = Loop(toy_spec(steps=12), Toy())
    loop.join(Pretended(loop))
    loop.run()
    found = torch.cat([p.detach().flatten() for p in loop.params]).numpy()
    assert np.array_equal(found, undisturbed(12).parameters)
