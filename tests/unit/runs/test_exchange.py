"""The fast sum of a group: near a single process's result, and headers that survive being summed."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import Toy, toy_spec

from sundog.runs.exchange import Alone, _digits, _from_digits
from sundog.runs.loop import Loop
from sundog.runs.processes import Job, LocalGroup
from sundog.runs.verify import verify
from sundog.storage.root import open_root


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_header_is_the_same_after_a_sum_with_the_zeros_of_others(word):
    summed = torch.tensor(_digits([word])) + torch.zeros(4)
    assert _from_digits(summed.tolist()) == word


def test_fast_mode_comes_near_a_single_process_and_proves_its_samples(tmp_path):
    spec = toy_spec(steps=12, exact=False, checkpoint={"every": 6, "keep": 2})
    alone = Loop(spec, Toy())
    alone.join(Alone())
    assert alone.run().state == "finished"
    with LocalGroup(Job(spec, Toy, str(tmp_path))) as group:
        group.grow(3)  # one of them has more micro-batches than the others
        group.form()
        assert set(group.settle()) == {"finished"}
        parameters = group.result().parameters
    whole = torch.cat([p.detach().flatten() for p in alone.params]).numpy()
    assert np.abs(parameters - whole).max() < 1e-5
    verdict = verify(open_root(str(tmp_path)), "local")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 12)
