"""What gateways report, added up into intervals and sums."""

from sundog.clock import ManualClock
from sundog.control.counters import GATEWAY_GONE_S, KEEP_S, Counters, minutes, recent
from sundog.serving.evidence import Counts
from sundog.serving.observe import Observer


def report(observer=None, **by_version):
    """One gateway's second: version -> (good, failed)."""
    observer = observer or Observer()
    for version, (good, failed) in by_version.items():
        for _ in range(good):
            observer.note("s", version, 200, 0.01)
        for _ in range(failed):
            observer.note("s", version, 500, 0.5)
    return observer.take()


def cut(counters, clock, after=-1, mirrored=False, from_s=0.0):
    return minutes(
        counters.reports("s"), baseline="v1", candidate="v2", mirrored=mirrored, tick_s=2.0,
        after=after, now_s=clock.now_s(), from_s=from_s,
    )  # fmt: skip


def test_intervals_are_whole_counted_once_and_added_over_gateways():
    clock = ManualClock(100.0)
    counters = Counters(clock)
    counters.report("a", report(v1=(5, 1)), {})
    counters.report("b", report(v1=(2, 0), v2=(3, 3)), {})
    assert cut(counters, clock) == (), "the interval is not over"
    clock.advance(2.0)
    [minute] = cut(counters, clock)
    assert (minute.baseline.counts, minute.candidate.counts) == (Counts(1, 8), Counts(3, 6))
    assert sum(minute.baseline.latency) == 7, "what failed has no latency"
    assert cut(counters, clock, after=minute.index) == ()
    assert cut(counters, clock, from_s=101.0) == ()
    assert recent(counters.reports("s"), "v2", clock.now_s()) == Counts(3, 6)
    clock.advance(KEEP_S + 1)
    counters.report("a", report(v1=(1, 0)), {})
    assert len(counters.reports("s")) == 1


def test_feedback_is_paired_by_age_and_the_callers_faults_do_not_count():
    clock = ManualClock(100.0)
    counters = Counters(clock)
    observer = Observer()
    observer.note("s", "v1", 400, 0.01)
    observer.note("s", "", 503, 0.01)
    observer.scored("s", "v1", 3.0, 1.0)
    observer.scored("s", "v1", 3.5, 0.0)
    observer.answered("s", "v2", 1)
    counters.report("a", observer.take(), {})
    clock.advance(2.0)
    [minute] = cut(counters, clock)
    assert minute.baseline.requests == 0
    assert minute.baseline.feedback == {1: (1.0, 0.0)}
    assert minute.candidate.answers == (0, 1)


def test_a_shadow_is_judged_by_mirrored_pairs_and_everybodys_errors():
    clock = ManualClock(100.0)
    counters = Counters(clock)
    observer = Observer()
    seen = observer.service("s")
    seen.mirror("v1").note(0.01, failed=False)
    seen.mirror("v2").note(0.02, failed=True)
    seen.compared(differs=True)
    seen.compared(differs=False, itself=True)
    counters.report("a", report(observer, v1=(4, 1)), {})
    clock.advance(2.0)
    [minute] = cut(counters, clock, mirrored=True)
    assert (minute.baseline.counts, sum(minute.baseline.latency)) == (Counts(1, 5), 1)
    assert minute.candidate.counts == Counts(1, 1)
    assert (minute.differ, minute.itself) == (Counts(1, 1), Counts(0, 1))


def lane(arrivals, completions, queued=0, running=0):
    now = {"arrivals": arrivals, "completions": completions, "busy_s": completions * 0.1}
    return {"s": {"v1": {**now, "queued": queued, "running": running}}}


def test_lanes_are_summed_as_they_grow_and_a_restarted_control_counts_no_history():
    clock = ManualClock(100.0)
    counters = Counters(clock)
    counters.report("a", {}, lane(1000, 990, queued=2, running=1))
    first = counters.take_lane("s", "v1")
    assert (first.arrivals, first.queued, first.running) == (0, 2, 1)
    counters.report("a", {}, lane(1010, 1000))
    counters.report("b", {}, lane(0, 0))
    counters.report("b", {}, lane(5, 3, queued=2))
    grown = counters.take_lane("s", "v1")
    assert (grown.arrivals, grown.completions, grown.queued) == (15, 13, 2)
    assert round(grown.busy_s, 6) == 1.3
    assert counters.take_lane("s", "v1").arrivals == 0
    counters.report("a", {}, lane(4, 4))
    assert counters.take_lane("s", "v1").arrivals == 4, "routed anew: it counts from zero"
    clock.advance(60.0)
    assert counters.take_lane("s", "v1").queued == 0, "gateways that are gone hold nothing"
    assert not counters.is_heard()


def test_what_a_killed_gateway_held_wakes_nobody():
    clock = ManualClock(100.0)
    counters = Counters(clock)
    counters.report("killed", {}, lane(3, 2, queued=1))
    counters.report("here", {}, lane(3, 3, queued=2))
    assert counters.waiting("s", "v1") == 3
    clock.advance(GATEWAY_GONE_S)
    counters.report("here", {}, lane(5, 4, queued=1))
    assert counters.waiting("s", "v1") == 1
    clock.advance(KEEP_S)
    counters.report("here", {}, lane(5, 5))
    counters.report("killed", {}, lane(1000, 1000))
    assert counters.take_lane("s", "v1").arrivals == 2, "who comes back after so long is a new one"


def test_what_control_did_not_get_is_told_with_the_next_report():
    observer = Observer()
    lost = report(observer, v1=(2, 0))
    observer.note("s", "v1", 200, 0.01)
    observer.put_back(lost)
    assert observer.take()["s"].arms["v1"].requests == 3
    assert observer.take() == {}
