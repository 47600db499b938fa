"""Rollouts through the store: stored before anybody acts, resumed by the next control, told at the end."""

from __future__ import annotations

import pytest

from sundog.clock import ManualClock
from sundog.control.counters import Counters
from sundog.control.rollout import Rollouts
from sundog.control.serving_plan import (
    App,
    Progress,
    Resolved,
    decide_rolling,
    digest,
    made_of,
    route,
    unheld,
)
from sundog.control.transition import (
    outcome,
    pinned,
    previous_version,
    rolling_of,
    starts_rollout,
    stays,
    wanted,
)
from sundog.errors import LeaseLost, NotFound, ServiceError
from sundog.serving.observe import Observer
from sundog.spec import ServiceSpec
from sundog.store import open_store

SIGNATURE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}], "outputs": []}
ENTRY = {"app": "s--v2", "deployment": "Model", "kind": "k", "signature": SIGNATURE, "model": "m"}


def spec_of(**rollout):
    words = {"strategy": "canary", "steps": ["10%", "50%"], "guards": ["errors"], "every": "2s"}
    return ServiceSpec.model_validate(
        {"service": "s", "model": "m@champion", "rollout": {**words, **rollout}}
    )


def running(ids, wanted=None, node="n"):
    """An application with these replicas, all on one node, or {replica: node}."""
    nodes = ids if isinstance(ids, dict) else dict.fromkeys(ids, node)
    return App("RUNNING", "", "d", wanted or len(ids), frozenset(ids), nodes=nodes)


class World:
    """A store, a clock that moves by hand, traffic, and control as it restarts."""

    def __init__(self, folder):
        self.clock = ManualClock(1000.0)
        self.store = open_store(f"sqlite:///{folder}/control.db", clock=self.clock)
        self.told = []
        self.leaving = frozenset()
        self.observer = Observer()
        self.restart()

    def restart(self):
        self.lease = self.store.acquire("control")
        self.counters = Counters(self.clock)
        self.rollouts = Rollouts(
            self.store, self.lease, self.counters, self.clock,
            lambda name, url, news: self.told.append((name, url, news)), lambda: self.leaving,
        )  # fmt: skip

    def begin(self, spec):
        return self.rollouts.begin("s", "m", spec.rollout, "1", "2", ENTRY, made_of(spec, "2"))

    def second(self, share, good=400, failing=0.0, app="RUNNING"):
        """One second of traffic with a share for version 2, then one look."""
        new = round(good * share)
        for version, count, rate in (("1", good - new, 0.0), ("2", new, failing)):
            for i in range(count):
                status = 500 if rate and i % round(1 / rate) == 0 else 200
                self.observer.note("s", version, status, 0.01)
        self.clock.advance(1.0)
        self.counters.report("g", self.observer.take(), {})
        record = self.rollouts.live("s")
        apps = {"1": running("a"), "2": App(app, "no such file", "digest")}
        return self.rollouts.step(record, apps, "digest")

    def run(self, failing=0.0, seconds=400):
        share = 0.0
        for _ in range(seconds):
            said = self.second(share, failing=failing)
            stored = self.store.rollouts("s")[0]
            assert stored["phase"] == said.phase, "stored before anybody acts on it"
            assert stored["document"]["weights"] == said.weights
            share = said.weights["2"]
            if said.ended:
                return said
        raise AssertionError(said.reason)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.store.close()


def test_a_good_version_gets_through_and_its_webhook_is_told_once(world):
    record = world.begin(spec_of(webhook="https://example.org/hook?secret"))
    assert world.run().phase == "promoted"
    assert not world.told, "not before the service has the outcome"
    world.rollouts.applied(record)
    [(name, url, news)] = world.told
    assert name == "rollout/s/1"
    assert url == "https://example.org/hook?secret"
    assert (news["phase"], news["candidate"], news["service"]) == ("promoted", "2", "s")
    assert world.rollouts.live("s") is None
    phases = [moment["phase"] for moment in record.history]
    assert phases == ["warming", "stepping", "stepping", "promoted"]
    world.restart()
    assert world.rollouts.live("s") is None
    assert world.rollouts.last("s").state.phase == "promoted"


def test_a_failing_version_comes_back_with_its_evidence(world):
    record = world.begin(spec_of())
    said = world.run(failing=0.1)
    assert said.phase == "rolled-back"
    assert "errors" in said.reason
    assert world.store.rollouts("s")[0]["document"]["evidence"][0]["harm"] > 20
    assert record.document()["differences"] == []


def test_a_killed_control_goes_on_from_its_last_state_and_the_paused_one_writes_nothing(world):
    record = world.begin(spec_of())
    for _ in range(20):
        world.second(0.1)
    before = record.state
    assert before.phase == "stepping"
    stale = world.rollouts
    world.restart()
    resumed = world.rollouts.live("s")
    assert (resumed.state, resumed.plan, resumed.spec) == (before, record.plan, record.spec)
    with pytest.raises(LeaseLost):
        stale.command("s", "promote", "a ghost")
    assert world.run().phase == "promoted"


def test_no_traffic_is_inconclusive_and_never_promoted(world):
    world.begin(spec_of(patience="20s"))
    for _ in range(60):
        said = world.second(0.0, good=0)
    assert said.phase == "inconclusive"
    assert said.weights == {"1": 0.9, "2": 0.1}
    assert "waiting for traffic" in said.reason


def test_a_version_that_does_not_start_gets_no_traffic(world):
    world.begin(spec_of())
    assert world.second(0.0, app="DEPLOYING").weights == {"1": 1.0, "2": 0.0}
    said = world.second(0.0, app="DEPLOY_FAILED")
    assert (said.phase, said.weights["2"]) == ("rolled-back", 0.0)
    assert "no such file" in said.reason


def test_replicas_that_die_again_and_again_are_a_crash_loop_and_fewer_by_wish_are_not(world):
    record = world.begin(spec_of())

    def look(ids, wanted):
        world.clock.advance(1.0)
        apps = {"1": running("x"), "2": running(ids, wanted)}
        return world.rollouts.step(record, apps, "d")

    look("abc", 3)
    look("a", 1)
    assert record.health.restarts == 0
    for ids in ("b", "c"):
        assert look(ids, 1).phase != "rolled-back"
    world.restart()
    record = world.rollouts.live("s")
    look("c", 1)
    said = look("d", 1)
    assert said.phase == "rolled-back", "what was lost before is remembered"
    assert "crash loop, 3 restarts" in said.reason


def test_a_node_that_goes_with_all_its_replicas_is_no_crash_of_the_version(world):
    record = world.begin(spec_of())

    def look(ids, base="x"):
        world.clock.advance(1.0)
        apps = {"1": running(base, 1), "2": running(ids, 3)}
        return world.rollouts.step(record, apps, "d")

    look({"a": "n1", "b": "n1", "c": "n1"})
    assert look({"d": "n2", "e": "n2", "f": "n2"}).phase == "stepping"
    assert record.health.restarts == 1, "Ray may not have noticed yet that the node is dead"
    world.leaving = frozenset({"n1"})
    look({"d": "n2", "e": "n2", "f": "n2"})
    assert record.health.restarts == 0
    for round_ in range(5):
        node = f"spot{round_}"
        world.leaving |= {node}
        assert look(dict.fromkeys((f"{round_}g", f"{round_}h", f"{round_}i"), node)).phase != (
            "rolled-back"
        )
    world.clock.advance(700.0)
    look(dict.fromkeys(record.losses["2"].running, "spot4"))
    assert record.losses["2"].lost == [], "ten minutes later it is forgotten"


def test_what_the_running_version_loses_as_often_is_not_the_new_ones_fault(world):
    record = world.begin(spec_of())
    for i in range(8):
        world.clock.advance(1.0)
        apps = {"1": running(f"{i}"), "2": running(chr(97 + i))}
        said = world.rollouts.step(record, apps, "d")
    assert record.health.restarts == 7
    assert said.phase == "stepping"


def test_a_sleeping_running_version_is_awaited_and_nobody_is_judged_alone(world):
    record = world.begin(spec_of())
    asleep = App("RUNNING", "", "d", 0)
    for _ in range(3):
        said = world.rollouts.step(record, {"1": asleep, "2": running("b")}, "d")
    assert (said.phase, said.weights["2"]) == ("warming", 0.0)
    assert "waiting for a replica of 1" in said.reason
    decision = decide_rolling(
        spec_of(), rolling_of(record, said, "2"), {"1": asleep, "2": running("b")},
        Progress("1", {"1": ENTRY}), {"1": 0, "2": 1},
    )  # fmt: skip
    assert [d.version for d in decision.deploys] == ["2"], "nobody knows what 1 was made of"
    known = App("RUNNING", "", "d", 0, made_of=made_of(spec_of(), "1"))
    decision = decide_rolling(
        spec_of(), rolling_of(record, said, "2"), {"1": known, "2": running("b")},
        Progress("1", {"1": ENTRY}), {"1": 0, "2": 1},
    )  # fmt: skip
    [wake] = [d for d in decision.deploys if d.version == "1"]
    assert (wake.replicas, wake.resizes) == (1, True)
    assert world.rollouts.step(record, {"1": running("a"), "2": running("b")}, "d").phase == (
        "stepping"
    )


def test_who_does_not_want_to_wait_for_the_running_version_promotes_by_hand(world):
    record = world.begin(spec_of())
    world.rollouts.step(record, {"2": running("b")}, "d")
    world.rollouts.command("s", "promote", "ann")
    assert record.state.phase == "promoted"


def test_another_model_named_meanwhile_waits_and_touches_neither_version(world):
    spec = spec_of()
    record = world.begin(spec)
    other = spec.model_copy(update={"model": "other@5"})
    named = Resolved(5, "", "k", SIGNATURE, "other")
    held = pinned(other, record)
    assert digest(held) == digest(spec)
    apps = {"1": running("a"), "2": App("RUNNING", "", digest(spec), 1, frozenset("b"))}
    said = world.rollouts.step(record, apps, digest(held))
    assert said.phase == "stepping", "the candidate is as it was"
    waits = wanted(record, named)
    assert waits == "other@5"
    rolling = rolling_of(record, said, waits)
    assert "other@5 waits for its end" in rolling.reason
    decision = decide_rolling(held, rolling, apps, Progress("1", {"1": ENTRY}), {"1": 1, "2": 1})
    assert decision.deploys == ()
    world.rollouts.command("s", "abort", "ann")
    after, _ = outcome(record, decision.progress, named)
    assert unheld(named, after).held is None, "what was rolled back is another model's"
    same = Resolved(2, "", "k", SIGNATURE, "m")
    assert unheld(same, after).held == after.held
    assert wanted(record, Resolved(1, "", "k", SIGNATURE, "other")) == "other@1"
    assert wanted(record, Resolved(None, "gone")) == "2"
    from_before = Rollouts(world.store, world.lease, world.counters, world.clock, print).last("s")
    assert from_before.made_of == record.made_of


def test_commands_say_who_and_are_refused_where_they_make_no_sense(world):
    with pytest.raises(NotFound, match="no rollout"):
        world.rollouts.command("s", "pause", "ann")
    record = world.begin(spec_of())
    with pytest.raises(ServiceError, match="not ready"):
        world.rollouts.command("s", "promote", "ann")
    with pytest.raises(ServiceError, match="a rollout is warming"):
        world.begin(spec_of())
    world.rollouts.command("s", "abort", "ann")
    assert record.state.reason == "aborted by ann"


def test_an_undeployed_service_ends_its_rollout(world):
    world.begin(spec_of())
    world.rollouts.forget("s")
    assert world.rollouts.live("s") is None
    assert world.rollouts.last("s").state.phase == "aborted"


def test_routes_carry_the_split_and_the_mirror_until_the_outcome(world):
    spec = spec_of(strategy="shadow", steps=[], guards=["answers"], tolerance=0.1, sticky="key")
    record = world.begin(spec)
    world.second(0.0)
    said = record.decision
    before = Progress("1", {"1": {**ENTRY, "app": "s--v1"}}, "ready")
    apps = {"1": App("RUNNING", "", "d"), "2": App("RUNNING", "", "d")}
    decision = decide_rolling(spec, rolling_of(record, said, "2"), apps, before)
    routed = route(spec, decision.progress)
    assert set(routed["versions"]) == {"1", "2"}
    assert routed["weights"] == {"1": 1.0}
    assert routed["mirror"] == {
        "baseline": "1", "candidate": "2", "share": 1.0, "tolerance": 0.1,
    }  # fmt: skip
    assert (routed["sticky"], routed["labels"], routed["version"]) == ("key", True, "1")
    assert "version 3 waits" in rolling_of(record, said, "3").reason
    world.rollouts.command("s", "abort", "ann")
    after, resolved = outcome(record, decision.progress, Resolved(2, "", "k", SIGNATURE, "m"))
    assert (after.active, resolved.version, after.traffic) == ("1", 1, None)
    assert after.held["instead_of"] == "2"
    assert "aborted by ann" in after.held["why"]


def test_what_starts_a_rollout_and_what_does_not():
    spec, entry = spec_of(), {"1": {**ENTRY, "app": "s--v1"}}
    new = Resolved(2, "", "k", SIGNATURE, "m")
    running = Progress("1", entry, "ready")
    assert starts_rollout(spec, new, running)
    assert not starts_rollout(spec, Resolved(1, "", "k", SIGNATURE, "m"), running)
    assert not starts_rollout(spec, Resolved(2, "", "k", SIGNATURE, "other"), running)
    assert not starts_rollout(spec, new, Progress())
    assert not starts_rollout(spec_of(strategy="all-at-once", steps=[]), new, running)
    there = {"1": App("RUNNING", "", "d")}
    assert stays(spec, new, running, there) == (None, "")
    other = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}], "outputs": []}
    kept, why = stays(spec, Resolved(2, "", "k", other, "m"), running, there)
    assert kept.version == 1
    assert "not rolled out" in why
    assert "[-1, 8]" in why
    away, why = stays(spec, new, running, {})
    assert (away.version, why) == (1, ""), "first the running version comes back"


def test_the_previous_version_is_what_answered_before():
    def history(*models):
        return [{"model": m} for m in models]

    assert previous_version(history("m@1", "m@2", "m@3"), "m", "3") == "2"
    assert previous_version(history("m@1", "m@2", "m@2"), "m", "2") == "1"
    assert previous_version(history("other@1", "m@2"), "m", "2") is None
