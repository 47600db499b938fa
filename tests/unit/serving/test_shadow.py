"""Mirrored requests: compared, kept, dropped when behind, and never in the user's way."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sundog.clock import ManualClock
from sundog.serving.contract import BadRequest
from sundog.serving.feedback import KEEP_S, Remembered, read
from sundog.serving.lane import NotServed
from sundog.serving.observe import ServiceCounts
from sundog.serving.shadow import ITSELF_EVERY, MAX_BEHIND, Shadow, compare, label_of


def tensor(values, datatype="FP32"):
    array = np.asarray(values, dtype={"FP32": np.float32, "INT64": np.int64}[datatype])
    return [(datatype, list(array.shape), array.tobytes())]


def test_classes_decide_where_there_are_scores_and_numbers_where_there_are_none():
    same = compare(tensor([[0.1, 0.9]]), tensor([[0.4, 0.6]]), 0.01)
    assert (same.differs, same.flips, same.beyond) == (False, 0, 2)
    assert compare(tensor([[0.1, 0.9]]), tensor([[0.6, 0.4]]), 0.01).differs
    assert not compare(tensor([100.0]), tensor([100.9]), 0.01).differs
    assert compare(tensor([100.0]), tensor([102.0]), 0.01).differs
    assert compare(tensor([1.0]), tensor([1.0, 2.0]), 0.01).differs
    assert compare(tensor([3], "INT64"), tensor([4], "INT64"), 0.01).differs
    assert not compare(tensor([np.nan]), tensor([np.nan]), 0.01).differs
    assert compare(tensor([np.nan]), tensor([1.0]), 0.01).differs


def test_the_label_is_the_class_of_the_first_row():
    assert label_of(tensor([[0.1, 0.9], [0.9, 0.1]])) == 1
    assert label_of(tensor([7], "INT64")) == 7
    assert label_of(tensor([1.5])) is None


class FakeLane:
    """Answers when told to."""

    def __init__(self, values):
        self.waiting, self.connections = 0, [type("C", (), {"load": 0})()]
        self.values, self.calls = values, 0

    async def call(self, parsed):
        self.calls += 1
        if self.values is None:
            raise NotServed(503, "no")
        return tensor(self.values)


def shadow(baseline, candidate, share=1.0):
    document = {"baseline": "1", "candidate": "2", "share": share, "tolerance": 0.01}
    return Shadow(document, baseline, candidate)


def offered(one, counts, times=1, version="1"):
    async def go():
        for i in range(times):
            one.offer(version, None, tensor([[0.1, 0.9]]), 0.01, f"r{i}", lambda: counts)
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)

    asyncio.run(go())


def test_differences_are_kept_and_both_arms_are_counted():
    counts, old, new = ServiceCounts(), FakeLane([[0.1, 0.9]]), FakeLane([[0.9, 0.1]])
    offered(shadow(old, new), counts, ITSELF_EVERY)
    assert counts.differ == (ITSELF_EVERY, ITSELF_EVERY)
    assert counts.itself == (0, 1)
    assert (counts.mirrored["1"].requests, counts.mirrored["2"].requests) == (8, 8)
    assert counts.differences[0]["request"] == "r0"
    assert counts.differences[0]["2"] == pytest.approx([0.9, 0.1])
    assert old.calls == 1


def test_a_share_is_mirrored_and_only_of_the_running_version():
    counts, new = ServiceCounts(), FakeLane([[0.1, 0.9]])
    offered(shadow(FakeLane([[0.1, 0.9]]), new, share=0.25), counts, 40)
    assert new.calls == 10
    offered(shadow(FakeLane([[0.1, 0.9]]), new), counts, 5, version="2")
    assert new.calls == 10


def test_a_candidate_that_fails_or_is_behind_costs_the_user_nothing():
    counts = ServiceCounts()
    offered(shadow(FakeLane([[0.1, 0.9]]), FakeLane(None)), counts, 2)
    assert counts.mirrored["2"].errors == 2
    behind = FakeLane([[0.1, 0.9]])
    behind.waiting = MAX_BEHIND
    offered(shadow(FakeLane([[0.1, 0.9]]), behind), counts, 3)
    assert (behind.calls, counts.dropped) == (0, 3)


def test_feedback_is_for_answers_that_are_remembered_once_and_for_an_hour():
    clock = ManualClock(10.0)
    kept = Remembered(clock, most=2)
    kept.add("a", "s", "1")
    clock.advance(5.0)
    assert kept.find("a") == ("s", "1", 5.0)
    kept.done("a")
    for unknown, status in (("a", 409), ("b", 404)):
        with pytest.raises(BadRequest) as refused:
            kept.find(unknown)
        assert refused.value.status == status
    for name in "cde":
        kept.add(name, "s", "2")
    assert len(kept) == 2
    with pytest.raises(BadRequest, match="remembered"):
        kept.find("c")
    clock.advance(KEEP_S + 1)
    with pytest.raises(BadRequest, match="remembered"):
        kept.find("e")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"score": 1}', b'{"request_id": "a"}', b'{"request_id": "a", "score": 2}',
     b'{"request_id": "a", "score": "good"}', b'{"request_id": 5, "score": 1}'],
)  # fmt: skip
def test_a_score_that_is_none_is_refused_with_an_example(body):
    with pytest.raises(BadRequest, match="request_id"):
        read(body)


def test_scores_are_numbers_or_yes_and_no():
    assert read(b'{"request_id": "a", "score": 0.5}') == ("a", 0.5)
    assert read(b'{"request_id": "a", "correct": true}') == ("a", 1.0)
