"""The rollout decider: its table of moves, its outcomes, and what it never does."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.errors import FormatTooNew, ServiceError, SpecError
from sundog.serving.evidence import Counts
from sundog.serving.rollout import (
    TRANSITIONS,
    begin,
    decide,
    factor_before,
)
from sundog.serving.rollout_facts import (
    ENDED,
    LATENCY_BOUNDS_S,
    Arm,
    Health,
    Minute,
    Plan,
    Snapshot,
    State,
    latency_bucket,
)
from sundog.spec.load import parse
from sundog.spec.service import Rollout, ServiceSpec

NUM_BUCKETS = len(LATENCY_BOUNDS_S) + 1


def arm(requests, errors=0, slow=0.05, feedback=()):
    """An arm's minute: `slow` of its requests take 100 ms, the others 20 ms."""
    histogram = [0] * NUM_BUCKETS
    late = round(requests * slow)
    histogram[latency_bucket(0.1)] = late
    histogram[latency_bucket(0.02)] = requests - late
    return Arm(requests, errors, tuple(histogram), feedback={2: tuple(feedback)})


def minutes_of(plan, state, *, total=2000, base_errors=0.01, new_errors=0.01, new_slow=0.05,
               count=1, **more):  # fmt: skip
    """Feed `count` minutes at whatever weight the decider asks for; the last decision."""
    decision = decide(plan, state, Snapshot(state.since_s))
    for _ in range(count):
        now_s = 60.0 * (decision.state.minute + 2)
        weight = decision.weights[plan.candidate]
        seen = round(decision.mirror * total) if weight == 0 else round(weight * total)
        new = round(weight * total)
        minute = Minute(
            decision.state.minute + 1,
            arm(total - new, round((total - new) * base_errors)),
            arm(seen, round(seen * new_errors), new_slow),
            **more,
        )
        decision = decide(plan, decision.state, Snapshot(now_s, (minute,)))
        if decision.ended:
            break
    return decision


def started(strategy="canary", **more):
    plan = Plan("v1", "v2", strategy=strategy, **more)
    state = begin(plan, 0.0)
    first = [Minute(0, arm(2000, 20))]
    return plan, decide(plan, state, Snapshot(0.0, tuple(first))).state


def test_a_canary_as_good_climbs_every_step_and_is_promoted():
    plan, state = started()
    weights = []
    for _ in range(60):
        decision = minutes_of(plan, state)
        state = decision.state
        weights.append(decision.weights["v2"])
        if decision.ended:
            break
    assert decision.phase == "promoted"
    assert "1.5× worse" in decision.reason
    assert list(dict.fromkeys(weights)) == [0.01, 0.05, 0.25, 0.5, 1.0]


def test_each_step_demands_that_less_harm_be_excluded():
    assert [factor_before(w) for w in (0.05, 0.25, 0.5, 1.0)] == [10.0, 5.0, 2.0, 1.5]


@pytest.mark.parametrize("harm", [{"new_errors": 0.06}, {"new_slow": 0.6}])
def test_a_worse_canary_is_rolled_back_with_its_evidence(harm):
    plan, state = started()
    decision = minutes_of(plan, state, count=120, **harm)
    assert decision.phase == "rolled-back"
    assert decision.weights == {"v2": 0.0, "v1": 1.0}
    guilty = "errors" if "new_errors" in harm else "latency"
    assert guilty in decision.reason
    assert "evidence of harm" in decision.reason
    assert any(r.guard == guilty and r.harm >= r.harm_at for r in decision.evidence)


def test_worse_feedback_rolls_back():
    plan, state = started(guards=("feedback",), steps=(0.5,))
    decision = decide(plan, state, Snapshot(0.0))
    for i in range(1, 40):
        minute = Minute(
            i, arm(100, feedback=[1.0, 1.0, 1.0, 0.0]), arm(100, feedback=[1.0, 0.0, 0.0, 0.0])
        )
        decision = decide(plan, decision.state, Snapshot(60.0 * i, (minute,)))
    assert decision.phase == "rolled-back"
    assert "feedback" in decision.reason


def test_without_traffic_it_is_inconclusive_and_never_promoted():
    plan, state = started(patience_s=600)
    decision = minutes_of(plan, state, total=0, count=200)
    assert decision.phase == "inconclusive"
    assert "0 of at least 50 requests" in decision.reason
    assert decision.weights["v2"] == 0.01  # traffic stays where it was
    again = minutes_of(plan, decision.state, count=100)  # and goes on when traffic comes
    assert again.phase == "promoted"


def test_a_guard_that_saw_nothing_is_not_passed():
    plan, state = started(guards=("errors", "feedback"), patience_s=600)
    decision = minutes_of(plan, state, count=60)
    assert decision.phase == "inconclusive"
    assert "feedback (nothing seen)" in decision.reason


def test_a_crash_at_load_never_gets_traffic():
    plan = Plan("v1", "v2")
    state = begin(plan, 0.0)
    for restarts in range(4):
        health = Health(ready=False, restarts=restarts)
        decision = decide(plan, state, Snapshot(60.0 * restarts, health=health))
        state = decision.state
        assert decision.weights["v2"] == 0.0
    assert decision.phase == "rolled-back"
    assert "crash loop" in decision.reason


def test_a_version_that_is_never_ready_is_given_up():
    plan = Plan("v1", "v2", patience_s=600)
    decision = decide(plan, begin(plan, 0.0), Snapshot(601.0, health=Health(ready=False)))
    assert decision.phase == "rolled-back"
    assert "not ready" in decision.reason


def test_a_version_whose_baseline_sleeps_waits_for_it_and_may_be_promoted_by_hand():
    plan = Plan("v1", "v2")
    alone = Health(ready=True, baseline_ready=False)
    decision = decide(plan, begin(plan, 0.0), Snapshot(1e6, health=alone))
    assert (decision.phase, decision.weights["v2"]) == ("warming", 0.0)
    assert "waiting for a replica of v1" in decision.reason
    by_hand = decide(plan, decision.state, Snapshot(1e6, health=alone, command="promote"))
    assert by_hand.phase == "promoted"
    beside = decide(plan, decision.state, Snapshot(1e6, health=Health()))
    assert beside.phase == "stepping"


@pytest.mark.parametrize("known", [True, False])
def test_a_version_without_comparable_traffic_is_guarded_and_never_moves_on(known):
    plan = Plan("v1", "v2", guards=("errors",), patience_s=600)
    state = started(guards=("errors",))[1] if known else decide(plan, begin(plan, 0.0),
                                                                Snapshot(0.0)).state  # fmt: skip
    good = bad = decide(plan, state, Snapshot(0.0))
    for i in range(1, 60):
        good = decide(plan, good.state, Snapshot(60.0 * i, (Minute(i, Arm(), arm(100)),)))
        if not bad.ended:
            bad = decide(plan, bad.state, Snapshot(60.0 * i, (Minute(i, Arm(), arm(100, 20)),)))
    assert bad.phase == "rolled-back"
    assert "errors" in bad.reason
    assert (good.phase, good.weights["v2"]) == ("inconclusive", 0.01)
    assert "the running version v1 had no traffic to compare with" in good.reason


@settings(max_examples=60, deadline=None)
@given(restarts=st.integers(3, 30), beside=st.floats(0, 30))
def test_a_crash_loop_is_one_only_beside_a_version_that_keeps_running(restarts, beside):
    plan, state = started()
    health = Health(restarts=restarts, restarts_baseline=beside)
    rolled_back = decide(plan, state, Snapshot(1.0, health=health)).phase == "rolled-back"
    assert rolled_back == (restarts > 2 * beside)


def test_a_state_of_an_earlier_sundog_is_read():
    _, state = started()
    raw = json.loads(state.to_json())
    del raw["step_baseline"]
    assert State.from_json(json.dumps(raw)) == replace(state, step_baseline=0)


def test_a_burst_of_errors_rolls_back_at_once_unless_everybody_has_it():
    plan, state = started()
    burst = Health(recent=Counts(15, 20), recent_baseline=Counts(5, 1000))
    assert decide(plan, state, Snapshot(10.0, health=burst)).phase == "rolled-back"
    outage = replace(burst, recent_baseline=Counts(700, 1000))
    assert decide(plan, state, Snapshot(10.0, health=outage)).phase == "stepping"


def test_blue_green_switches_whole_keeps_the_old_one_warm_and_returns_at_once():
    plan, state = started("blue-green")
    decision = decide(plan, state, Snapshot(0.0))
    assert decision.weights == {"v2": 1.0, "v1": 0.0}
    assert decision.standby == ("v1",)
    bad = minutes_of(plan, state, new_errors=0.2, count=3)
    assert bad.phase == "rolled-back"
    assert bad.weights["v1"] == 1.0
    good = minutes_of(plan, state, count=20)
    assert good.phase == "promoted"
    assert good.standby == ("v1",)
    later = decide(plan, good.state, Snapshot(good.state.since_s + plan.standby_s + 1))
    assert later.standby == ()


def test_ab_keeps_its_share_for_as_long_as_wanted_and_still_guards():
    plan, state = started("ab", share=0.3)
    decision = minutes_of(plan, state, count=300)
    assert decision.phase == "comparing"
    assert decision.weights["v2"] == 0.3
    assert minutes_of(plan, state, new_errors=0.1, count=60).phase == "rolled-back"
    won = decide(plan, decision.state, Snapshot(1e6, command="promote", by="ada"))
    assert won.phase == "promoted"
    assert won.reason == "promoted by ada"


def test_a_shadow_is_mirrored_compared_and_never_answers():
    plan, state = started("shadow", guards=("errors", "latency", "answers"))
    same = {"differ": Counts(20, 2000), "itself": Counts(20, 2000)}
    decision = decide(plan, state, Snapshot(0.0))
    assert decision.mirror == 1.0
    assert decision.weights["v2"] == 0.0
    good = minutes_of(plan, state, count=30, **same)
    assert good.phase == "cleared"
    assert good.weights["v2"] == 0.0
    other = {"differ": Counts(300, 2000), "itself": Counts(20, 2000)}
    bad = minutes_of(plan, state, count=30, **other)
    assert bad.phase == "rolled-back"
    assert "answers" in bad.reason
    assert bad.mirror == 0.0


def test_all_at_once_goes_when_it_is_ready():
    plan = Plan("v1", "v2", strategy="all-at-once")
    waiting = decide(plan, begin(plan, 0.0), Snapshot(1.0, health=Health(ready=False)))
    assert waiting.weights["v2"] == 0.0
    assert waiting.standby == ("v2",)
    assert decide(plan, waiting.state, Snapshot(2.0)).weights["v2"] == 1.0


def test_pause_holds_traffic_but_not_the_guards():
    plan, state = started()
    paused = decide(plan, state, Snapshot(60.0, command="pause", by="ada"))
    assert paused.phase == "paused"
    assert paused.weights["v2"] == 0.01
    assert minutes_of(plan, paused.state, count=60).phase == "paused"
    assert minutes_of(plan, paused.state, new_errors=0.3, count=60).phase == "rolled-back"
    assert decide(plan, paused.state, Snapshot(90.0, command="resume")).phase == "stepping"


@pytest.mark.parametrize("command", ["pause", "resume", "promote", "abort"])
def test_what_has_ended_takes_no_commands_and_no_traffic(command):
    plan, state = started()
    aborted = decide(plan, state, Snapshot(1.0, command="abort"))
    with pytest.raises(ServiceError, match="has ended: aborted"):
        decide(plan, aborted.state, Snapshot(2.0, command=command))
    assert minutes_of(plan, aborted.state, count=50).weights["v2"] == 0.0


def test_commands_that_make_no_sense_are_refused():
    plan, state = started()
    with pytest.raises(ServiceError, match="not paused"):
        decide(plan, state, Snapshot(1.0, command="resume"))
    with pytest.raises(ServiceError, match="not ready"):
        decide(plan, begin(plan, 0.0), Snapshot(1.0, health=Health(False), command="promote"))
    with pytest.raises(ServiceError, match="a rollout is stepping"):
        begin(plan, 5.0, running=state)
    with pytest.raises(ServiceError, match="running already"):
        begin(Plan("v1", "v1"), 0.0)


def test_a_controller_killed_at_any_moment_goes_on_where_it_was():
    plan, state = started(guards=("errors", "latency", "answers", "feedback"))
    more = {"differ": Counts(30, 100), "itself": Counts(1, 100)}
    decision = minutes_of(plan, state, count=7, **more)
    again = State.from_json(decision.state.to_json())
    assert again == decision.state
    # The same minutes told twice count once.
    old = (Minute(3, arm(1000, 10), arm(1000, 900)),)
    assert (
        decide(plan, again, Snapshot(decision.state.since_s, old)).state
        == decide(plan, again, Snapshot(decision.state.since_s)).state
    )
    with pytest.raises(FormatTooNew):
        State.from_json(again.to_json().replace('"format": 1', '"format": 2'))


_COUNT = st.integers(0, 400)


@st.composite
def _snapshots(draw):
    steps = []
    for i in range(draw(st.integers(1, 12))):
        base, new = draw(_COUNT), draw(_COUNT)
        minute = Minute(
            i,
            arm(base, draw(st.integers(0, base)), feedback=[0.5]),
            arm(new, draw(st.integers(0, new)), feedback=[draw(st.floats(0, 1))]),
            Counts(draw(st.integers(0, 50)), 50),
            Counts(draw(st.integers(0, 50)), 50),
        )
        health = Health(draw(st.booleans()), draw(st.integers(0, 3)))
        command = draw(st.sampled_from([None] * 6 + ["pause", "resume", "promote", "abort"]))
        steps.append(Snapshot(60.0 * i, (minute,), health, command))
    return steps


@settings(max_examples=150, deadline=None)
@given(
    strategy=st.sampled_from(sorted(TRANSITIONS)),
    guards=st.sets(st.sampled_from(["errors", "latency", "answers", "feedback"])),
    snapshots=_snapshots(),
)
def test_weights_add_up_moves_are_in_the_table_and_ends_are_final(strategy, guards, snapshots):
    plan = Plan("v1", "v2", strategy=strategy, guards=tuple(sorted(guards)), patience_s=200)
    state = begin(plan, 0.0)
    for seen in snapshots:
        try:
            decision = decide(plan, state, seen)
        except ServiceError:
            decision = decide(plan, state, replace(seen, command=None))
        if decision.phase != state.phase:
            assert decision.phase in TRANSITIONS[strategy][state.phase]
        assert sum(decision.weights.values()) == pytest.approx(1.0)
        assert all(0 <= w <= 1 for w in decision.weights.values())
        if state.phase in ("aborted", "rolled-back"):
            assert decision.weights == {"v2": 0.0, "v1": 1.0}
            assert decision.mirror == 0.0
        assert decision.reason
        state = State.from_json(decision.state.to_json())
        assert state == decision.state


def test_every_table_can_end_and_can_be_stopped():
    for table in TRANSITIONS.values():
        for phase, to in table.items():
            assert (to == frozenset()) if phase in ENDED else {"aborted", "rolled-back"} <= to


def test_a_plan_is_what_the_spec_says():
    spec = Rollout(strategy="canary", steps=["5%", "50%"], every="5min", guards=["errors"])
    plan = Plan.of(spec, "v1", "v2")
    assert (plan.steps, plan.step_s, plan.guards, plan.harm_at) == (
        (0.05, 0.5),
        300,
        ("errors",),
        20,
    )
    assert Plan.of(Rollout(strategy="canary"), "v1", "v2").steps == (0.01, 0.05, 0.25, 0.5)


@pytest.mark.parametrize(
    ("rollout", "says"),
    [
        ("{strategy: canary, steps: [5%, 1%]}", "must rise"),
        ("{strategy: canary, steps: [5%, 5%]}", "must rise"),
        ("{strategy: canary, steps: [50%, 100%]}", "between 0% and 100%"),
        ("{strategy: canary, steps: [0%, 10%]}", "between 0% and 100%"),
        ("{strategy: blue-green, steps: [10%]}", "steps belong to a canary"),
        ("{strategy: ab, share: 100%}", "share must lie"),
        ("{strategy: ab, sticky: cookie}", "sticky"),
        ("{strategy: canery}", "did you mean 'canary'"),
        ("{guards: [errors, errors]}", "each guard once"),
    ],
)
def test_a_rollout_that_does_not_add_up_is_refused_at_its_line(rollout, says):
    text = f"service: digits\nmodel: digits@champion\nrollout: {rollout}\n"
    with pytest.raises(SpecError, match=says) as caught:
        parse(text, ServiceSpec, "digits.yaml")
    assert "digits.yaml:3: rollout" in str(caught.value)
