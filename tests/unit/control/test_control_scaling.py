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
        counts = self.scaler.counts(spec or spec_of(), {"1": self.app()}, None)
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
    apps = {"1": App("RUNNING", "", "d", 4, frozenset("abcd")), "2": App("RUNNING", "", "d", 1)}
    scaler = world.scaler
    counts = scaler.counts(spec_of("4..8"), apps, {"weights": {"2": 0.5, "1": 0.5}})
    assert counts["2"] >= 2
    assert scaler.prepare({"1": 4, "2": 1}, "2", 1.0) == {"1": 4, "2": 4}
    assert scaler.prepare({"1": 4, "2": 1}, "2", 0.1) == {"1": 4, "2": 1}


def test_the_slo_says_how_long_a_request_may_wait():
    assert profile_of(spec_of()).wait_slo_s == 1.0
    tight = profile_of(spec_of(slo={"p99": "100ms", "p95": "80ms"}), {"service_s": 0.02})
    assert tight.wait_slo_s == pytest.approx(0.02)
    assert tight.service_s == 0.02
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
    assert world.scaler.counts(spec, {"1": world.app()}, None)["1"] >= 1
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
