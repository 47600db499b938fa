"""The scaler: gateways' counters in, replicas by version out, remembered in the store."""

import pytest

from sundog.clock import ManualClock
from sundog.control.counters import Counters
from sundog.control.scaling import Scaler, profile_of
from sundog.control.serving_plan import App
from sundog.control.signals import Signals
from sundog.spec import ServiceSpec
from sundog.store import open_store


def spec_of(replicas="1..6", **more):
    return ServiceSpec.model_validate({"service": "s", "model": "m", "replicas": replicas, **more})


class World:
    """A service whose replicas are as many as the scaler wanted a moment ago."""

    def __init__(self, folder):
        self.clock = ManualClock(1000.0)
        self.store = open_store(f"sqlite:///{folder}/control.db", clock=self.clock)
        self.totals = {"arrivals": 0.0, "completions": 0.0, "busy_s": 0.0}
        self.replicas = 1
        self.answers = {}
        self.restart()

    def restart(self):
        self.counters = Counters(self.clock)
        self.signals = Signals(self.clock, lambda query: self.answers[query])
        lease = self.store.acquire("c")
        self.scaler = Scaler(self.store, lease, self.counters, self.signals, self.clock)

    def app(self):
        ids = frozenset(map(str, range(self.replicas)))
        return App("RUNNING", "", "d", self.replicas, ids)

    def second(self, rate, service_s=0.1, spec=None, heard=True):
        self.clock.advance(1.0)
        self.totals["arrivals"] += rate
        self.totals["completions"] += rate
        self.totals["busy_s"] += rate * service_s
        if heard:
            self.counters.report("g", {}, {"s": {"1": {**self.totals, "queued": 0, "running": 0}}})
        counts = self.scaler.counts(spec or spec_of(), {"1": self.app()})
        self.replicas = counts["1"]
        return self.replicas


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.store.close()


def test_replicas_follow_the_work_and_the_reason_is_kept(world):
    for _ in range(30):
        world.second(2)
    assert world.replicas == 1
    for _ in range(30):
        world.second(30)
    assert 4 <= world.replicas <= 6, "30 a second of 0.1 s each are three replicas' work"
    count, why = world.scaler.reason("s", "1")
    assert count >= 4
    assert why
    [event] = [e for e in world.store.events("s") if e["fields"]["from"] == 1][:1]
    assert event["kind"] == "service.scaled"
    for _ in range(200):
        world.second(1)
    assert world.replicas < 4


def test_a_restarted_control_takes_nothing_away_from_a_busy_service(world):
    for _ in range(60):
        world.second(30)
    before = world.replicas
    world.restart()
    assert world.second(30, heard=False) == before, "nobody has said anything yet"
    for _ in range(20):
        assert world.second(30) >= before - 1


def test_fixed_replicas_are_nobodys_to_decide_and_bounds_are_kept(world):
    assert world.second(1000, spec=spec_of(3)) == 3
    for _ in range(40):
        world.second(1000, spec=spec_of("1..2"))
    assert world.replicas == 2


def test_who_takes_traffic_over_has_room_for_it(world):
    def prepare(counts, weights, share, replicas="1..12"):
        return world.scaler.prepare(spec_of(replicas), counts, weights, "2", share)

    assert prepare({"1": 4, "2": 1}, {"1": 1.0}, 1.0) == {"1": 4, "2": 4}
    assert prepare({"1": 4, "2": 1}, {"1": 1.0}, 0.1) == {"1": 4, "2": 1}
    assert prepare({"1": 5, "2": 5}, {"1": 0.5, "2": 0.5}, 1.0)["2"] == 10, "both halves"
    assert prepare({"1": 9, "2": 1}, {"1": 0.99, "2": 0.01}, 0.05)["2"] == 1
    assert prepare({"1": 3, "2": 3}, {"1": 0.5, "2": 0.5}, 1.0, 3)["2"] == 3, "the spec's bounds"


def test_room_that_was_made_stays_until_the_traffic_is_there(world):
    def report():
        world.clock.advance(2.0)
        idle = {"arrivals": 0, "completions": 0, "busy_s": 0.0, "queued": 0, "running": 0}
        world.counters.report("g", {}, {"s": {"1": idle, "2": idle}})

    one = App("RUNNING", "", "d", 5, frozenset("abcde"))
    for _ in range(40):  # long enough to be sure that one replica is enough
        report()
        world.scaler.counts(spec_of(), {"2": App("RUNNING", "", "d", 1, frozenset("x"))})
    apps = {"1": one, "2": App("RUNNING", "", "d", 6, frozenset("uvwxyz"))}
    world.scaler.prepare(spec_of(), {"1": 5, "2": 1}, {"1": 0.9, "2": 0.1}, "2", 1.0)
    assert world.scaler.counts(spec_of(), apps)["2"] == 6, "promoted a moment ago"
    report()
    assert world.scaler.counts(spec_of(), apps)["2"] == 6


def test_a_number_that_is_not_there_yet_is_told_once(world):
    asks = App("RUNNING", "", "d", 1, frozenset("a"))
    for _ in range(60):
        world.second(30)
    before = len(world.store.events("s", 1000))
    for _ in range(20):  # nobody applies it
        world.clock.advance(2.0)
        world.counters.report("g", {}, {})
        world.scaler.counts(spec_of("4..6"), {"1": asks})
    told = world.store.events("s", 1000)[: len(world.store.events("s", 1000)) - before]
    assert len(told) == len({e["fields"]["to"] for e in told}) > 0


def test_a_version_that_must_not_sleep_now_is_asked_for(world):
    spec = spec_of("0..4")
    asleep = App("RUNNING", "", "d", 0)
    for _ in range(3):
        world.clock.advance(2.0)
        world.counters.report("g", {}, {})
        assert world.scaler.counts(spec, {"1": asleep}, awake=True) == {"1": 1}
    assert all(e["fields"]["to"] == 1 for e in world.store.events("s"))


def test_the_start_up_time_that_was_seen_counts_for_more_than_the_profiles(world, monkeypatch):
    used = []
    monkeypatch.setattr(
        "sundog.control.scaling.profile_of",
        lambda spec, known: used.append(known) or profile_of(spec, known),
    )
    measured = {"startup_s": 1.0, "service_s": 0.1}
    starting, there = App("RUNNING", "", "d", 1), App("RUNNING", "", "d", 1, frozenset("a"))
    world.scaler.counts(spec_of(), {"1": starting}, measured)
    assert used[-1]["startup_s"] == 1.0, "nothing else is known"
    world.clock.advance(60.0)
    world.scaler.counts(spec_of(), {"1": there}, measured)
    assert used[-1] == {"startup_s": 60.0, "service_s": 0.1}
    for start_s in (20.0, 30.0):
        world.scaler.counts(spec_of(), {"1": App("RUNNING", "", "d", 0)}, measured)
        world.scaler.counts(spec_of(), {"1": starting}, measured)
        world.clock.advance(start_s)
        world.scaler.counts(spec_of(), {"1": there}, measured)
    assert used[-1]["startup_s"] == 60.0, "the slowest of the last ones"
    assert world.scaler.startup_s("s", "1") == 30.0


def test_the_slo_says_how_long_a_request_may_wait():
    assert profile_of(spec_of()).wait_slo_s == 1.0
    tight = profile_of(spec_of(slo={"p99": "100ms", "p95": "80ms"}), {"service_s": 0.02})
    assert tight.wait_slo_s == pytest.approx(0.02)
    assert tight.service_s == 0.02
    streamed = profile_of(spec_of(slo={"first": "300ms"}), {"service_s": 8.0})
    assert streamed.wait_slo_s == pytest.approx(0.1)
    both = profile_of(spec_of(slo={"first": "300ms", "p99": "80ms"}), {"service_s": 0.02})
    assert both.wait_slo_s == pytest.approx(0.02)
    idle = profile_of(spec_of("0..4", keep_warm="1min"))
    assert (idle.min_replicas, idle.cold_start_worth_s) == (0, 60.0)


def test_an_idle_service_sleeps_and_whoever_comes_wakes_it_at_once(world):
    spec = spec_of("0..4", keep_warm="20s")
    for _ in range(10):
        world.second(2, spec=spec)
    assert world.replicas == 1
    for _ in range(120):
        world.second(0, spec=spec)
    assert world.replicas == 0
    held = {"s": {"1": {**world.totals, "arrivals": world.totals["arrivals"] + 1,
                        "queued": 1, "running": 0}}}  # fmt: skip
    world.clock.advance(0.6)
    world.counters.report("g", {}, held)
    assert world.scaler.counts(spec, {"1": world.app()})["1"] >= 1
    assert world.scaler.startup_s("s", "1") is None, "sleeping is no start-up time"


KV = {"name": "kv", "query": 'avg(kv{service="$service",version="$version"})', "target": 0.5}


def test_a_signal_asks_for_replicas_in_proportion_until_it_is_stale(world):
    spec = spec_of(signals=[KV])
    world.second(1, spec=spec)
    world.answers['avg(kv{service="s",version="1"})'] = 1.0
    world.signals.ask_all()
    for _ in range(3):
        world.second(1, spec=spec)
    assert world.replicas == 2
    count, why = world.scaler.reason("s", "1")
    assert (count, "kv at 1 of 0.5" in why) == (2, True)
    for _ in range(120):
        world.second(1, spec=spec)
    assert world.replicas == 1, "half a minute without news"
