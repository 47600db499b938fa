from __future__ import annotations

import pytest

from sundog import telemetry
from sundog.runs.stages import change

LAST = {"step": 100, "world": 2, "at_s": 1000.0}
STAMPS = {"cause": "lost", "seen_s": 1000.6, "parked_s": 1000.7, "gathered_s": 1000.8}


def first(step: int, world: int, at_s: float, left: tuple[int, float] | None) -> dict:
    left_off = {"step": left[0], "at_s": left[1]} if left else {"step": -1, "at_s": None}
    return {
        "step": step,
        "world": world,
        "at_s": at_s,
        "joined_s": at_s - 0.1,
        "left_off": left_off,
    }


def test_a_survivor_knows_when_it_last_stepped():
    found = change(LAST, first(121, 1, 1001.0, (120, 1000.4)), STAMPS)
    assert found.event == telemetry.RUN_RECOVERED
    assert (found.steps_back, found.took_s) == (0, pytest.approx(0.6))
    assert found.stages == {
        "noticed": pytest.approx(0.2), "parked": pytest.approx(0.1), "gathered": pytest.approx(0.1),
        "formed": pytest.approx(0.1), "stepped": pytest.approx(0.1),
    }  # fmt: skip
    assert sum(found.stages.values()) == pytest.approx(found.took_s)


def test_processes_that_start_anew_count_from_the_last_news():
    found = change(LAST, first(91, 2, 1008.0, None), STAMPS)
    assert (found.steps_back, found.took_s) == (10, pytest.approx(8.0))
    assert "going over 10 steps again" in found.line


def test_a_notice_is_seen_while_all_still_work():
    stamps = {**STAMPS, "cause": "notice", "seen_s": 1000.5}
    found = change(LAST, first(121, 1, 1001.0, (120, 1000.66)), stamps)
    assert found.event == telemetry.RUN_DRAINED
    assert "noticed" not in found.stages
    assert found.stages["parked"] == pytest.approx(0.2)
    assert found.line.startswith("drained: 2 → 1 worker at step 121 after 0.3")


def test_without_stamps_there_are_no_stages_and_clocks_never_run_backwards():
    found = change(LAST, first(121, 3, 1000.3, (120, 1000.4)), None)
    assert (found.event, found.took_s, found.stages) == (telemetry.RUN_RESIZED, 0.0, {})
