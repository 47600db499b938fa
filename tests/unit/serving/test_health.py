"""Replicas that are much slower or faultier than the others are left out for a while, and come back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sundog.serving.health import FAULTS, FIRST_S, GOOD, LEAST, MOST_S, Health, why_out


def known(seconds, answers=LEAST):
    made = Health()
    for _ in range(answers):
        made.answered(seconds)
    return made


def test_a_slow_one_is_named_with_its_reason():
    slow, others = known(0.2), [known(0.005), known(0.006)]
    assert why_out(slow, others, 0.0) == "a call takes 200 ms, elsewhere 6 ms"
    assert why_out(slow, [known(0.005)], 0.0), "of two, the slow one"
    assert why_out(others[0], [slow, others[1]], 0.0) is None
    assert why_out(known(0.015), [known(0.002)] * 2, 0.0) is None, "it is a matter of milliseconds"
    assert why_out(known(0.2), [known(0.15), known(0.1)], 0.0) is None, "all are slow"
    assert why_out(known(0.2, LEAST - 1), others, 0.0) is None, "too early to say"
    assert why_out(slow, [], 0.0) is None, "the only one"


def test_one_that_fails_is_left_out_unless_others_fail_too():
    broken, good = Health(), Health()
    for _ in range(FAULTS):
        broken.failed()
    assert "failed" in why_out(broken, [good, good], 0.0)
    good.failed()
    assert why_out(broken, [good], 0.0) is None, "it may be what is asked"


def test_it_comes_back_and_its_next_answer_decides():
    bad, others, now_s, pauses = known(0.2), [known(0.005)] * 3, 0.0, []
    for _ in range(8):
        assert why_out(bad, others, now_s)
        pauses.append(bad.leave_out(now_s))
        assert bad.out(now_s)
        now_s = bad.until_s
        assert not bad.out(now_s)
        bad.answered(0.2)
    assert pauses[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert pauses[-1] == MOST_S
    bad.leave_out(now_s)
    for _ in range(GOOD):
        bad.answered(0.005)
        assert why_out(bad, others, bad.until_s) is None
    assert bad.leave_out(now_s) == FIRST_S, "its past is forgotten"


@given(st.lists(st.floats(0.0001, 10.0), min_size=1, max_size=12))
def test_never_more_than_half_are_out_and_never_the_fastest(seconds):
    all_of_them = [known(s) for s in seconds]
    for mine in all_of_them:
        others = [h for h in all_of_them if h is not mine]
        if why_out(mine, others, 0.0):
            mine.leave_out(0.0)
    out = [h.out(0.0) for h in all_of_them]
    assert 2 * sum(out) <= len(out)
    assert not out[seconds.index(min(seconds))]
