"""The parts for loops of one's own: order, checkpoints and goodput, without Ray."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sundog
from sundog.clock import ManualClock
from sundog.errors import RunError
from sundog.runs.parts import ElasticSampler, GoodputMeter, JustInTimeCheckpoint


@given(st.integers(1, 300), st.integers(1, 6), st.integers(0, 3), st.data())
def test_over_any_worlds_every_row_comes_as_often_as_in_one(rows, micro, seed, data):
    batch, state, seen = 8 * micro, None, []
    for _ in range(4):  # four lives of one run, each with another number of workers
        world = data.draw(st.integers(1, 8))
        ranks = [ElasticSampler(rows, batch, seed=seed, rank=r, world=world) for r in range(world)]
        for sampler in ranks:
            if state:
                sampler.load_state_dict(state)
        assert sum(s.weight for s in ranks) == pytest.approx(world)
        for _ in range(3):
            seen += [row for s in ranks for row in s.rows(s.step)]
            for sampler in ranks:
                sampler.step += 1
        state = ranks[0].state_dict()
    alone = ElasticSampler(rows, batch, seed=seed)
    assert seen == [row for step in range(12) for row in alone.rows(step)]


def test_it_is_a_batch_sampler_of_a_data_loader():
    data = torch.utils.data.TensorDataset(torch.arange(50))
    sampler = ElasticSampler(50, 16, rank=1, world=2).until(5)
    loader = torch.utils.data.DataLoader(data, batch_sampler=sampler)
    assert len(loader) == 5
    assert [b[0].tolist() for b in loader] == [sampler.rows(s) for s in range(5)]
    sampler.step = 3  # where the loop stands; a loader reads ahead
    assert len(list(loader)) == 2
    with pytest.raises(TypeError, match="until"):
        len(ElasticSampler(50, 16))


def test_another_order_of_samples_is_refused():
    state = ElasticSampler(50, 16, seed=1).state_dict()
    with pytest.raises(RunError, match="another order"):
        ElasticSampler(50, 16, seed=2).load_state_dict(state)
    with pytest.raises(RunError, match="micro"):
        ElasticSampler(50, 16, micro_batch=16)


def test_the_cut_of_a_batch_stays_when_the_world_grows_beyond_what_was_thought_of():
    narrow = ElasticSampler(500, 96, world=8).state_dict()
    wide = ElasticSampler(500, 96, world=12).state_dict()
    assert (narrow["plan"]["count"], wide["plan"]["count"]) == (8, 12)
    again = ElasticSampler(500, 96, world=4)
    again.load_state_dict(wide)
    assert again.state_dict()["plan"] == wide["plan"]
    assert len(again.rows(0)) == 24
    with pytest.raises(RunError, match="count 8, not 12") as caught:
        ElasticSampler(500, 96, world=12).load_state_dict(narrow)
    assert "most_workers=12" in caught.value.fix
    with pytest.raises(RunError, match="count 8, not 24"):  # who names the size has his reasons
        ElasticSampler(500, 96, world=8, micro_batch=4).load_state_dict(narrow)


class Told:
    """A notice that comes when the test says so."""

    now = False

    def taken(self) -> bool:
        now, self.now = self.now, False
        return now


def test_a_checkpoint_is_written_when_due_when_told_and_at_the_end(tmp_path):
    clock, notice = ManualClock(0.0), Told()
    saver = JustInTimeCheckpoint(
        "mine", root=str(tmp_path), every=10, keep=9, notice=notice, clock=clock
    )
    assert saver.latest() is None
    asked: list[int] = []

    def state(step: int):
        def give():
            asked.append(step)
            return {"step": step, "w": torch.ones(2) * step}

        return give

    for step in range(1, 26):
        notice.now = step == 14
        saver.step(step, state(step), last=step == 25)
    assert asked == [10, 14, 24, 25]
    again = JustInTimeCheckpoint("mine", root=str(tmp_path), every=10)
    assert again.latest()["step"] == 25
    for path in (tmp_path / "runs/mine/checkpoints/25").glob("state*"):
        path.write_bytes(b"rubbish")
    assert again.latest()["step"] == 24
    assert torch.equal(again.latest()["w"], torch.ones(2) * 24)


@pytest.mark.parametrize("every", ["10min", "600s", "200 steps", 200, "auto"])
def test_intervals_are_written_as_in_a_spec(tmp_path, every):
    clock = ManualClock(0.0)
    saver = JustInTimeCheckpoint("mine", root=str(tmp_path), every=every, clock=clock)
    clock.advance(1)
    assert not saver.step(1, dict)
    clock.advance(600)
    assert saver.step(200, dict)


def test_an_interval_that_is_none_is_said_at_once(tmp_path):
    with pytest.raises(RunError, match="'often' is not an interval"):
        JustInTimeCheckpoint("mine", root=str(tmp_path), every="often")


def test_goodput_counts_what_was_kept():
    clock = ManualClock(0.0)
    meter = GoodputMeter(2, clock)
    with meter.waiting("startup"):
        clock.advance(5)
    for step in range(1, 11):
        clock.advance(1)
        meter.stepped(step, stall_s=0.5 if step == 10 else 0.0)
    assert meter.seconds["startup"] == 10
    assert meter.seconds["checkpoint"] == 1
    assert meter.seconds["useful"] == 19
    meter.stepped(6)  # a checkpoint of step 6 was loaded: four steps are computed again
    assert meter.seconds["recomputed"] > 0
    assert 0 < meter.goodput < 19 / 30


def test_they_are_what_the_package_offers():
    assert sundog.ElasticSampler is ElasticSampler
    assert sundog.JustInTimeCheckpoint is JustInTimeCheckpoint
