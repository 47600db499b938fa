"""The scaling decider: pure, bounded, steady under steady load, always with a reason."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.errors import Corrupt, FormatTooNew
from sundog.serving import forecast, scaling
from sundog.serving.scaling import Decision, Profile, Signal, Snapshot, State, decide
from sundog.serving.scaling_state import from_json, to_json

PROFILE = Profile(slots=8, startup_s=60.0, service_s=0.2, min_replicas=1, max_replicas=50)


class Service:
    """A service whose replicas come when they are asked for, after the start-up time."""

    def __init__(self, profile: Profile = PROFILE, ready: int = 1, now_s: float = 0.0) -> None:
        self.profile, self.ready, self.now_s = profile, ready, now_s
        self.state: State | None = None
        self.starts: list[float] = []
        self.decisions: list[Decision] = []

    def tick(self, arrivals: int, **seen: object) -> Decision:
        self.now_s += 2.0
        while self.starts and self.starts[0] <= self.now_s:
            self.starts.pop(0)
            self.ready += 1
        snapshot = Snapshot(
            self.now_s,
            self.ready,
            len(self.starts),
            arrivals=arrivals,
            completions=arrivals,
            completed_service_s=arrivals * self.profile.service_s,
            **seen,  # type: ignore[arg-type]
        )
        decision = decide(snapshot, self.state, self.profile)
        self.state = decision.state
        there = self.ready + len(self.starts)
        self.starts += [self.now_s + self.profile.startup_s] * (decision.count - there)
        for _ in range(there - decision.count):
            if self.starts:
                self.starts.pop()
            else:
                self.ready -= 1
        self.decisions.append(decision)
        return decision

    def run(self, seconds: float, rate_s: float) -> list[int]:
        return [self.tick(round(2 * rate_s)).count for _ in range(int(seconds / 2))]


loads = st.lists(st.integers(0, 2000), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(loads, st.integers(0, 5), st.integers(1, 20), st.integers(0, 30))
def test_bounds_hold_and_every_decision_has_a_reason(
    arrivals: list[int], low: int, more: int, ready: int
) -> None:
    service = Service(replace(PROFILE, min_replicas=low, max_replicas=low + more), ready=ready)
    for count in arrivals:
        decision = service.tick(count)
        assert low <= decision.count <= low + more
        assert len(decision.reason) > 10
        assert decision.reason.startswith(str(decision.count))


@settings(max_examples=60, deadline=None)
@given(loads)
def test_the_same_input_gives_the_same_output(arrivals: list[int]) -> None:
    one, two = Service(), Service()
    for count in arrivals:
        assert one.tick(count) == two.tick(count)


@settings(max_examples=40, deadline=None)
@given(loads)
def test_asked_again_at_the_same_instant_it_learns_nothing(arrivals: list[int]) -> None:
    service = Service()
    for count in arrivals:
        decision = service.tick(count)
        snapshot = Snapshot(service.now_s, service.ready, len(service.starts), arrivals=count)
        again = decide(snapshot, decision.state, PROFILE)
        assert (again.count, again.reason, again.state) == (
            decision.count,
            decision.reason,
            decision.state,
        )


@settings(max_examples=40, deadline=None)
@given(loads, st.integers(0, 59))
def test_a_state_written_as_json_goes_on_as_if_nothing_had_happened(
    arrivals: list[int], at: int
) -> None:
    one, two = Service(), Service()
    for number, count in enumerate(arrivals):
        if number == at and two.state is not None:
            two.state = from_json(json.loads(json.dumps(to_json(two.state))))
        assert one.tick(count) == two.tick(count)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_more_load_never_gets_fewer_replicas(one: int, two: int) -> None:
    low, high = sorted((one, two))
    for few, many in zip(Service().run(200, low), Service().run(200, high), strict=True):
        assert few <= many


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 1000))
def test_constant_load_settles_and_never_changes_again(rate_s: int) -> None:
    counts = Service(replace(PROFILE, max_replicas=500)).run(900, rate_s)
    assert len(set(counts[150:])) == 1
    # Enough for the work, and not more than half as much again (and one).
    assert 0.2 * rate_s <= 8 * counts[-1] <= 1.6 * 0.2 * rate_s + 3 * 8


def test_the_first_decision_needs_no_history() -> None:
    decision = decide(Snapshot(1_000_000.0, ready=0), None, PROFILE)
    assert decision.count == 1
    assert "least allowed" in decision.reason or "warm" in decision.reason


def test_a_restarted_controller_takes_nothing_away_before_it_has_watched_a_minute() -> None:
    service = Service(ready=12)
    assert set(service.run(50, 150)) == {12}
    assert "watched" in service.decisions[-1].reason
    assert service.run(120, 150)[-1] < 12


def test_the_first_look_of_all_takes_nothing_away_whatever_it_sees() -> None:
    first = decide(Snapshot(1_000.0, ready=7), None, PROFILE)
    assert first.count == 7
    assert "watched" in first.reason


def test_a_rise_is_carried_over_the_start_up_time() -> None:
    flat, rising = Service(), Service()
    flat.run(300, 200)
    for second in range(0, 300, 2):
        rising.tick(2 * (50 + second // 2))
    # Both see 200/s now; one comes from 50/s.
    assert rising.decisions[-1].count >= flat.decisions[-1].count
    assert "rising" in rising.decisions[-1].reason


def test_a_jump_that_nothing_announced_leaves_a_reserve_and_then_is_forgotten() -> None:
    service = Service()
    service.run(600, 50)
    before = service.decisions[-1].count
    service.run(60, 250)
    after = service.run(600, 50)[-1]
    assert after > before
    assert "sudden jump" in service.decisions[-1].reason
    assert service.run(3000, 50)[-1] == before


def test_the_fewer_jumps_were_seen_the_more_is_carried_for_the_next() -> None:
    def reserve(jumps: int) -> float:
        seen = tuple((60.0 * number, 10.0) for number in range(jumps))
        return forecast.reserve_slots(
            forecast.Forecaster(jumps=seen, peaks=((0.0, 50.0),)), demand=20.0
        )

    assert reserve(0) == 0.0
    assert reserve(1) == pytest.approx(20 + 2 * 10)
    assert reserve(4) == pytest.approx(20 + 1.5 * 10)
    assert reserve(1) > reserve(2) > reserve(9) > 20 + 10


def test_a_rise_that_the_replicas_asked_for_take_is_no_jump() -> None:
    service = Service()
    # 28 slots with a quarter spare are five replicas: they take a rise by 40%, not one by 80%.
    service.run(600, 140)
    assert service.decisions[-1].count == 5
    service.run(40, 196)
    assert service.state is not None
    before = len(service.state.forecaster.jumps)
    service.run(600, 140)
    service.run(60, 260)
    assert len(service.state.forecaster.jumps) > before == 0


def test_one_replica_alone_only_after_half_an_hour_was_watched() -> None:
    service = Service()
    counts = []
    for _ in range(20):
        service.run(110, 0)
        service.run(10, 20)
        counts.append(service.decisions[-1].count)
    assert counts[8] == 2
    assert "sudden jump" in service.decisions[8 * 60].reason
    assert counts[-1] == 1


def test_a_load_that_crosses_a_threshold_back_and_forth_does_not_start_and_stop() -> None:
    service = Service()
    service.run(600, 140)
    while service.decisions[-1].count == 5:
        service.run(4, 140 + len(service.decisions) / 100)
    rate_s = 140 + len(service.decisions) / 100
    counts = [service.tick(round(2 * rate_s) - 6 * (tick // 60 % 2)).count for tick in range(600)]
    assert set(counts[60:]) == {6}
    assert any("too near" in decision.reason for decision in service.decisions[-600:])
    service.run(600, 120)
    assert service.decisions[-1].count < 6


def test_an_onset_on_the_half_hour_is_met_by_replicas_that_are_ready() -> None:
    service = Service(replace(PROFILE, max_replicas=100))
    service.run(600, 50)
    quiet = service.ready
    service.run(90, 300)
    service.run(1800 - 90 - 20, 50)
    # Remembered as a jump too; the calendar alone has it a day later.
    assert service.ready * 8 >= 0.2 * 300
    service.now_s += 86_400 - 1800 - 400
    service.run(200, 50)
    assert service.ready == quiet
    service.run(200, 50)
    assert service.ready * 8 >= 0.2 * 300
    assert "onset" in service.decisions[-1].reason


def test_nothing_leaves_while_a_queue_stands() -> None:
    service = Service()
    service.run(300, 200)
    there = service.decisions[-1].count
    assert {service.tick(20, queued=500).count for _ in range(60)} >= {there}
    assert min(decision.count for decision in service.decisions[-60:]) >= there


def test_an_idle_service_is_kept_warm_for_a_while_and_then_goes_to_zero() -> None:
    service = Service(replace(PROFILE, min_replicas=0, cold_start_worth_s=300.0))
    service.run(200, 20)
    counts = service.run(400, 0)
    assert counts[int(200 / 2)] == 1
    assert counts[-1] == 0
    assert "idle" in service.decisions[-1].reason
    # A held request brings it back at once.
    assert service.tick(1, queued=1).count >= 1


def test_a_signal_above_its_target_asks_for_more_and_near_it_for_nothing() -> None:
    def count(value: float) -> Decision:
        service = Service(ready=4)
        service.run(120, 10)
        service.ready = 4
        return service.tick(20, signals=(Signal("gpu utilisation", value, 0.7),))

    assert count(0.72).count <= 4
    high = count(0.95)
    assert high.count == 6
    assert "gpu utilisation" in high.reason


def test_service_time_is_learnt() -> None:
    service = Service(ready=8)
    slow = Profile(slots=8, service_s=0.8, max_replicas=100)
    service.run(120, 40)
    before = service.decisions[-1].count
    service.profile = slow
    after = service.run(600, 40)[-1]
    assert after > before + 1


def test_a_newer_format_is_refused_and_a_broken_one_is_named() -> None:
    state = scaling.first_state(PROFILE, 0.0)
    with pytest.raises(FormatTooNew):
        from_json({**to_json(state), "format": 2})
    with pytest.raises(Corrupt):
        from_json({"format": 1})


def test_impossible_profiles_are_refused() -> None:
    with pytest.raises(ValueError, match="bounds"):
        Profile(min_replicas=3, max_replicas=2)
    with pytest.raises(ValueError, match="slots"):
        Profile(slots=0)


def test_the_decider_imports_nothing_that_knows_the_time_or_the_world() -> None:
    names = ("scaling", "demand", "forecast", "calendar", "warmth", "scaling_state")
    folder = Path(scaling.__file__).parent
    for name in names:
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            assert not {module.split(".")[0] for module in modules} & {
                "ray", "torch", "time", "random", "socket", "numpy", "datetime", "os",
            }  # fmt: skip
