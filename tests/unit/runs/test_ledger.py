from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.errors import Corrupt, FormatTooNew
from sundog.runs.ledger import Entry, Plan, check, decode, encode
from sundog.runs.sampler import fingerprint

PLAN = Plan(rows=50, batch=16, count=8, seed=3)


def entry(step: int, world: int) -> Entry:
    parts = [PLAN.rows_of(step, world, rank) for rank in range(world)]
    return Entry(step, tuple(fingerprint(PLAN.sampler.indices(step, *p)) for p in parts))


@given(worlds=st.lists(st.integers(1, 5), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_any_schedule_of_world_sizes_verifies(worlds):
    verdict = check(PLAN, [entry(s, w) for s, w in enumerate(worlds)], len(worlds))
    assert verdict.good
    assert (verdict.lost, verdict.duplicated) == (0, 0)
    assert verdict.samples == 16 * len(worlds)


def test_a_step_that_is_missing_is_lost():
    verdict = check(PLAN, [entry(0, 2), entry(2, 2)], 3)
    assert (verdict.lost, verdict.duplicated) == (16, 0)
    assert not verdict.good


def test_a_step_that_is_there_twice_is_duplicated():
    assert check(PLAN, [entry(0, 2), entry(1, 1), entry(1, 2)], 2).duplicated == 16


def test_other_samples_than_were_due_are_lost():
    first, other = entry(0, 2), entry(1, 2)
    mixed = Entry(0, (first.prints[0], other.prints[1]))
    assert check(PLAN, [mixed], 1).lost == 8


def test_segments_are_stored_and_read_back():
    entries = [entry(s, 3) for s in range(4)]
    assert decode(encode(PLAN, entries)) == (PLAN, entries)


def test_a_newer_or_broken_segment_is_refused():
    body = json.loads(encode(PLAN, [])) | {"format": 2}
    with pytest.raises(FormatTooNew):
        decode(json.dumps(body).encode())
    with pytest.raises(Corrupt):
        decode(b'{"format": 1, "entr')
