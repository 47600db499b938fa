from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.runs import sampler
from sundog.runs.sampler import Sampler, fingerprint, permuted, share


@given(rows=st.integers(1, 3000), key=st.integers(0, 2**63))
@settings(max_examples=40, deadline=None)
def test_a_permutation_sends_every_place_somewhere_else(rows, key):
    assert sorted(permuted(np.arange(rows), rows, key)) == list(range(rows))


@given(rows=st.integers(1, 400), batch=st.integers(1, 90), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_sample_is_consumed_exactly_once_an_epoch(rows, batch, seed):
    source = Sampler(rows, batch, seed)
    steps = -(-3 * rows // batch)
    stream = np.concatenate([source.indices(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(
    rows=st.integers(5, 300),
    count=st.integers(1, 12),
    worlds=st.lists(st.integers(1, 6), min_size=1, max_size=20),
)
@settings(max_examples=40, deadline=None)
def test_any_schedule_of_world_sizes_reads_the_same_rows_in_the_same_order(rows, count, worlds):
    source = Sampler(rows, count * 3, 7)
    for step, world in enumerate(worlds):
        parts = [share(count, world, rank) for rank in range(world)]
        read = [source.indices(step, a * 3, b * 3) for a, b in parts]
        assert np.concatenate(read).tolist() == source.indices(step).tolist()


def test_the_order_is_pinned_for_ever():
    # A run that is resumed by a later Sundog must go on with the same order.
    assert Sampler(10, 10, 1).indices(0).tolist() == [7, 0, 9, 2, 4, 6, 8, 5, 3, 1]


def test_large_data_sets_are_not_held_in_memory(monkeypatch):
    small = Sampler(1000, 100, 3).indices(4)
    monkeypatch.setattr(sampler, "_REMEMBERED_ROWS", 10)
    assert Sampler(1000, 100, 3).indices(4).tolist() == small.tolist()
    assert len(set(Sampler(10**12, 64, 0).indices(10**6).tolist())) == 64


def test_seeds_and_epochs_differ():
    one, two = Sampler(50, 50, 1), Sampler(50, 50, 2)
    assert one.indices(0).tolist() != two.indices(0).tolist()
    assert one.indices(0).tolist() != one.indices(1).tolist()


def test_steps_in_covers_the_epochs():
    assert Sampler(100, 30, 0).steps_in(1) == 4
    assert Sampler(100, 30, 0).steps_in(0.3) == 1


def test_fingerprints_see_order_and_content():
    assert fingerprint(np.array([1, 2])) != fingerprint(np.array([2, 1]))
    assert fingerprint(np.array([1, 2])) == fingerprint(np.array([1, 2], dtype=np.int32))


def test_data_without_rows_is_refused():
    with pytest.raises(ValueError, match="without rows"):
        Sampler(0, 8, 0)
