from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.runs.reduction import Node, add_up, partials
from sundog.runs.sampler import share


def within(node: Node, leaves) -> np.float32:
    if node.leaf:
        return leaves[node.start]
    left, right = node.children()
    return within(left, leaves) + within(right, leaves)


@given(count=st.integers(1, 40), world=st.integers(1, 12), seed=st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_the_sum_has_the_same_bits_at_any_world_size(count, world, seed):
    leaves = np.random.default_rng(seed).normal(size=count).astype(np.float32) * 1e3
    known = {
        node: within(node, leaves)
        for rank in range(world)
        for node in partials(count, *share(count, world, rank))
    }
    root = Node(0, count)
    assert add_up(root, known, lambda a, b: a + b).tobytes() == within(root, leaves).tobytes()


@given(count=st.integers(1, 64), start=st.integers(0, 63), length=st.integers(0, 64))
def test_partials_cover_their_range_once(count, start, length):
    stop = min(count, start + length)
    nodes = partials(count, start, stop)
    covered = [leaf for node in nodes for leaf in range(node.start, node.stop)]
    assert covered == list(range(start, stop))


def test_a_missing_micro_batch_is_an_error_and_not_a_zero():
    with pytest.raises(KeyError, match="micro-batch 1"):
        add_up(Node(0, 2), {Node(0, 1): 1.0}, lambda a, b: a + b)
