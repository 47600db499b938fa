"""How many micro-batches a batch has."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sundog.spec.cuts import micro_batches
from sundog.spec.run import RunSpec


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "count"),
    [(128, None, 2, 8), (128, 32, 2, 4), (24, None, 3, 8), (6, None, 4, 6), (120, None, 9, 10)],
)
def test_micro_batches_do_not_depend_on_the_present_world(batch, micro, workers, count):
    assert micro_batches(batch, micro, workers) == count


def test_without_an_exact_curve_nobody_computes_more_passes_than_there_are_workers():
    assert micro_batches(128, None, 4, exact=False) == 4
    assert micro_batches(128, None, 3, exact=False) == 4


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "way_out"),
    [
        (4, None, 5, "batch: 5 or more"),
        (8, 4, 3, "micro_batch: 2 or less"),
        (9, 2, 1, "try 1"),
        (127, None, 4, "batch: 128, which can be cut into 8"),
    ],
)
def test_a_batch_that_no_worker_count_can_share_is_refused(batch, micro, workers, way_out):
    with pytest.raises(ValueError, match=way_out):
        micro_batches(batch, micro, workers)


@given(st.integers(1, 4096), st.integers(1, 64), st.booleans())
def test_every_worker_has_one_and_all_are_of_one_size(batch, workers, exact):
    try:
        count = micro_batches(batch, None, workers, exact)
    except ValueError:
        assume(False)
    assert batch % count == 0
    assert count >= workers


def test_a_spec_says_it_before_anything_starts():
    fields = {"run": "r", "recipe": "m:R", "steps": 1, "workers": "1..4"}
    with pytest.raises(ValueError, match="batch: 4 or more"):
        RunSpec.model_validate({**fields, "batch": 3})
    with pytest.raises(ValueError, match="evaluate: 200 steps"):
        RunSpec.model_validate({**fields, "evaluate": "10min"})
    with pytest.raises(ValueError, match="no effect on a constant rate"):
        RunSpec.model_validate({**fields, "schedule": {"end": 0.1}})
