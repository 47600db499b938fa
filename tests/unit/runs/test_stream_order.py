from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.runs.ledger import Entry, Plan, check, decode, encode
from sundog.runs.sampler import fingerprint, share
from sundog.runs.stream_order import StreamSampler


@st.composite
def samplers(draw) -> StreamSampler:
    lanes = draw(st.integers(1, 8))
    return StreamSampler(
        rows=draw(st.integers(1, 400)), batch=lanes * draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 9)), lanes=lanes, block=draw(st.integers(1, 60)),
        window=draw(st.integers(1, 5)),
    )  # fmt: skip


@given(samplers(), st.integers(0, 3))
def test_every_row_comes_exactly_once_an_epoch(sampler, epoch):
    positions = np.arange(epoch * sampler.rows, (epoch + 1) * sampler.rows)
    assert sorted(sampler.at(positions)) == list(range(sampler.rows))


@given(samplers(), st.integers(0, 40), st.integers(1, 5))
def test_the_order_does_not_depend_on_who_asks_for_what(sampler, step, world):
    whole = sampler.indices(step)
    micro = sampler.batch // sampler.lanes
    parts = [
        sampler.indices(step, start * micro, stop * micro)
        for start, stop in (share(sampler.lanes, world, r) for r in range(world))
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_epochs_and_seeds_differ_and_rows_are_mixed():
    sampler = StreamSampler(4096, 64, 1, lanes=8, block=64, window=4)
    first, second = sampler.at(np.arange(4096)), sampler.at(np.arange(4096, 8192))
    assert not np.array_equal(first, second)
    other = StreamSampler(4096, 64, 2, lanes=8, block=64, window=4)
    assert not np.array_equal(first, other.at(np.arange(4096)))
    # A batch draws from many blocks, and neighbours of a batch are no neighbours of the data.
    assert len(set(sampler.indices(0) // 64)) > 16
    assert np.mean(np.abs(np.diff(first)) == 1) < 0.05


def test_a_lane_stays_in_its_own_blocks():
    sampler = StreamSampler(8 * 16 * 64, 64, 3, lanes=8, block=64, window=4)
    steps = sampler.rows // sampler.batch
    lanes = [
        {int(i) // 64 for s in range(steps) for i in sampler.indices(s, m * 8, (m + 1) * 8)}
        for m in range(8)
    ]
    assert [len(blocks) for blocks in lanes] == [16] * 8
    assert len(set.union(*lanes)) == 128
    now = {int(i) // 64 for i in sampler.indices(5, 0, 8)}
    assert len(now) <= 4  # a window at a time


def test_the_ledger_proves_a_streamed_run_and_catches_a_wrong_worker():
    plan = Plan(rows=500, batch=40, count=8, seed=1, block=32, window=2)
    entries = [
        Entry(s, tuple(
            fingerprint(plan.sampler.indices(s, *plan.rows_of(s, world, r))) for r in range(world)
        ))
        for s, world in enumerate([1, 2, 3, 2, 4, 1, 8] * 3)
    ]  # fmt: skip
    assert decode(encode(plan, entries)) == (plan, entries)
    assert check(plan, entries, 21).good
    entries[3] = Entry(3, entries[4].prints[:2])
    assert check(plan, entries, 21).lost == 40


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="do not divide"):
        StreamSampler(10, 9, 0, lanes=2, block=4, window=1)
    with pytest.raises(ValueError, match="at least 1"):
        StreamSampler(0, 8, 0, lanes=2, block=4, window=1)
