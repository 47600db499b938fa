"""Rounds of the services controller over a real store and registry, before a Serve that only keeps notes."""

import pytest

from sundog.clock import ManualClock
from sundog.control import services as services_module
from sundog.control.applications import GatewayPlace
from sundog.control.counters import Counters
from sundog.control.rollout import Rollouts
from sundog.control.scaling import Scaler
from sundog.control.services import ServicesController
from sundog.control.serving_plan import ANCHOR, digest, made_of
from sundog.control.signals import Signals
from sundog.control.snapshots import Snapshots
from sundog.errors import LeaseLost, StorageUnavailable
from sundog.rayapi import serve_apps
from sundog.rayapi.serve_apps import AppView, DeploymentView
from sundog.spec import ServiceSpec
from sundog.storage.models import Registry
from sundog.storage.root import open_root
from sundog.storage.signature import Signature, TensorSpec
from sundog.store import open_store

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))
CANARY = {"strategy": "canary", "steps": ["10%", "50%"], "guards": ["errors"], "every": "2s"}


class Serve:
    """Whatever is deployed runs at once."""

    def __init__(self):
        self.apps, self.refused = {}, set()

    def anchor(self, name, **spec):
        document = {"service": name, "model": "m@champion", **spec}
        user = {"spec": ServiceSpec.model_validate(document).model_dump(mode="json")}
        view = DeploymentView("HEALTHY", "", user, 0)
        self.apps[name] = AppView(name, "RUNNING", "", {ANCHOR: view})

    def deploy(self, apps):
        if refused := self.refused & set(apps):
            raise ValueError(f"{refused} is refused")
        self.apps |= {name: make(name) for name, make in apps.items()}

    def model(self, spec, place, replicas=1):
        user = {"digest": digest(spec), "place": place, "made_of": made_of(spec, place["version"])}

        def make(name):
            ids = [f"{name}#{i}" for i in range(replicas)]
            view = DeploymentView(
                "HEALTHY", "", user, replicas, frozenset(ids), dict.fromkeys(ids, "n")
            )
            return AppView(name, "RUNNING", "", {"Model": view})

        return make

    def gateway(self, place, count):
        user = place.config(count)
        view = DeploymentView("HEALTHY", "", user, 1)
        return lambda name: AppView(name, "RUNNING", "", {"Gateway": view})

    def replicas(self, app):
        return self.apps[app].deployments["Model"].replicas_wanted

    def made_of(self, app):
        return self.apps[app].deployments["Model"].user_config["made_of"]


class World:
    def __init__(self, folder, serve):
        self.serve, self.folder = serve, folder
        self.clock = ManualClock(1000.0)
        self.store = open_store(f"sqlite:///{folder}/control.db", clock=self.clock)
        self.registry = Registry(open_root(str(folder / "root")))
        self.told, self.total = [], {}
        self.restart()

    def restart(self):
        lease = self.store.acquire("c")
        self.counters = Counters(self.clock)
        self.snapshots = Snapshots(lease.epoch, self.store.snapshot("routes")[0], self.clock)
        self.rollouts = Rollouts(
            self.store, lease, self.counters, self.clock, lambda *news: self.told.append(news)
        )
        scaler = Scaler(self.store, lease, self.counters, Signals(self.clock), self.clock)
        self.control = ServicesController(
            self.store, lease, self.snapshots, self.rollouts, scaler, str(self.folder / "root"),
            GatewayPlace("http://127.0.0.1:1"), self.clock,
        )  # fmt: skip

    def register(self, name, **more):
        source = self.folder / f"{name}-source"
        source.mkdir(exist_ok=True)
        (source / "it.py").write_text("class It: ...")
        return self.registry.import_python(name, source, "it:It", SIGNATURE, **more)

    def round(self, times=1, **rates):
        """A second with so many requests of 0.1 s for each version of service `s`, and a look."""
        for _ in range(times):
            self.clock.advance(1.0)
            for version, rate in rates.items():
                self.total[version[1:]] = self.total.get(version[1:], 0) + rate
            lanes = {
                v: {"arrivals": n, "completions": n, "busy_s": n / 10, "queued": 0, "running": 0}
                for v, n in self.total.items()
            }
            self.counters.report("g", {}, {"s": lanes})
            self.control.step()

    def row(self, name):
        [row] = [r for r in self.control.listing() if r["service"] == name]
        return row


@pytest.fixture
def serve(monkeypatch):
    made = Serve()
    monkeypatch.setattr(serve_apps, "applications", lambda: dict(made.apps))
    monkeypatch.setattr(serve_apps, "deploy", made.deploy)
    monkeypatch.setattr(services_module, "labels_of_nodes", lambda: [{}])
    monkeypatch.setattr(serve_apps, "delete", lambda name: made.apps.pop(name))
    monkeypatch.setattr(services_module, "model_app", made.model)
    monkeypatch.setattr(services_module, "gateway_app", made.gateway)
    return made


@pytest.fixture
def world(tmp_path, serve):
    made = World(tmp_path, serve)
    made.register("m", alias="champion")
    yield made
    made.store.close()


def test_a_service_whose_storage_is_away_stalls_nobody_else(world, serve, monkeypatch):
    hold = Registry.hold

    def broken(registry, name, version, holder):
        if holder.endswith(":a-bad"):
            raise StorageUnavailable("the bucket does not answer", "")
        hold(registry, name, version, holder)

    monkeypatch.setattr(Registry, "hold", broken)
    serve.anchor("a-bad")
    serve.anchor("s")
    world.round(4)
    assert world.row("s")["state"] == "ready"
    assert "the bucket does not answer" in world.row("a-bad")["message"]
    routes = world.snapshots.body["services"]
    assert routes["s"]["weights"] == {"1": 1.0}
    assert "the bucket does not answer" in routes["a-bad"]["message"]
    monkeypatch.setattr(Registry, "hold", hold)
    world.round(5)
    assert (world.row("a-bad")["state"], world.row("a-bad")["message"]) == ("ready", "")


def test_what_serve_refuses_is_that_services_fault_alone(world, serve):
    serve.anchor("a-bad")
    serve.anchor("s")
    serve.refused = {"a-bad--v1"}
    world.round(4)
    assert world.row("s")["state"] == "ready"
    assert "is refused" in world.row("a-bad")["message"]


def test_a_programming_error_at_one_service_is_its_fault_and_a_lost_lease_is_everybodys(
    world, serve, monkeypatch
):
    resolve = type(world.control._models).resolve

    def broken(models, spec):
        if spec.service == "a-bad":
            raise KeyError("oops")
        return resolve(models, spec)

    monkeypatch.setattr(type(world.control._models), "resolve", broken)
    serve.anchor("a-bad")
    serve.anchor("s")
    world.round(3)
    assert world.row("s")["state"] == "ready"
    assert "oops" in world.row("a-bad")["message"]
    stale = world.control
    world.restart()
    serve.anchor("s", queue=5)
    with pytest.raises(LeaseLost):
        stale.step()


def rolling(world, serve, **more):
    """Service s, version 1 under load, a canary of version 2 under way."""
    serve.anchor("s", rollout=CANARY, replicas="1..9", **more)
    world.round(40, v1=2)
    world.register("m", alias="champion")
    world.round(2, v1=2)
    assert world.row("s")["state"] == "rolling"
    assert world.rollouts.live("s").state.phase == "stepping"


def test_the_running_version_scales_in_a_rollout_as_it_was_made_and_is_told_once(world, serve):
    rolling(world, serve)
    before = serve.made_of("s--v1")
    serve.anchor("s", rollout=CANARY, replicas="1..9", env={"A": "1"})
    world.round(40, v1=50, v2=1)
    assert serve.replicas("s--v1") >= 5
    assert serve.made_of("s--v1") == before, "the changed spec waits for the outcome"
    assert serve.made_of("s--v2")["env"] == {}
    assert 3 <= serve.replicas("s--v2") <= 5, "room for the half that comes next"
    scaled = [e for e in world.store.events("s", 1000) if e["kind"] == "service.scaled"]
    assert len(scaled) < 12
    world.control.command("s", "abort", "ann")
    world.round(3, v1=50)
    assert serve.made_of("s--v1")["env"] == {"A": "1"}


def test_another_models_name_in_mid_rollout_waits_for_its_end(world, serve):
    rolling(world, serve)
    made = {app: serve.made_of(app) for app in ("s--v1", "s--v2")}
    world.register("other")
    serve.anchor("s", rollout=CANARY, replicas="1..9", model="other@1")
    world.round(5, v1=2)
    assert {app: serve.made_of(app) for app in made} == made
    assert "other@1 waits for its end" in world.row("s")["message"]
    world.control.command("s", "abort", "ann")
    world.round(4, v1=2)
    assert serve.made_of("s--v1")["model"] == "other@1"
    assert "held" not in world.row("s")["message"]
    assert world.snapshots.body["services"]["s"]["versions"]["1"]["model"] == "other"


def test_a_name_that_is_nowhere_leaves_the_rollout_and_the_others_alone(world, serve):
    rolling(world, serve)
    serve.anchor("s", rollout=CANARY, replicas="1..9", model="nobody@7")
    world.round(20, v1=50)
    assert world.rollouts.live("s").state.phase == "stepping"
    assert serve.replicas("s--v1") >= 5
    world.control.command("s", "abort", "ann")
    world.round(3, v1=2)
    assert world.row("s")["version"] == "1"
    assert "nobody" in world.row("s")["message"]


def test_a_sleeping_service_is_woken_for_a_rollout(world, serve):
    serve.anchor("s", rollout=CANARY, replicas="0..4", keep_warm="5s")
    world.round(100, v1=0)
    assert serve.replicas("s--v1") == 0
    world.register("m", alias="champion")
    world.round(1, v1=0)
    assert serve.replicas("s--v1") == 1
    world.round(2, v1=0)
    assert world.rollouts.live("s").state.phase == "stepping"
    assert (serve.replicas("s--v1"), serve.replicas("s--v2")) == (1, 1)


def test_a_rollback_by_hand_is_told_and_control_goes_on_after_a_restart(world, serve):
    serve.anchor("s", rollout={"webhook": "http://hook"})
    world.round(3)
    world.register("m", alias="champion")
    world.round(3)
    assert world.row("s")["version"] == "2"
    world.control.rollback("s", None, "ann")
    [(name, url, news)] = world.told
    assert name.startswith("rollback/s/")
    assert url == "http://hook"
    assert (news["candidate"], news["baseline"], news["phase"]) == ("2", "1", "rolled-back")
    assert "by ann" in news["reason"]
    world.restart()
    world.round(2)
    assert world.row("s")["version"] == "1"


def test_what_a_later_sundog_stored_of_a_service_stops_nobody(world, serve):
    serve.anchor("s")
    world.round(3)
    spec, state = world.store.services()["s"]
    lease = world.store.acquire("c")
    later = {**spec, "word_of_tomorrow": 1}
    world.store.put_service(lease, "s", later, {**state, "thing_of_tomorrow": 2})
    world.restart()
    world.round(2)
    assert (world.row("s")["state"], world.row("s")["version"]) == ("ready", "1")
    assert "s--v1" in serve.apps


def test_what_is_done_around_a_model_is_held_as_long_as_its_replicas(world, serve):
    world.register("io")
    serve.anchor("s", process="io@1", allow_code=True)
    world.round(3)
    assert world.registry.holds("io", 1) == ["service:s--v1"]
    del serve.apps["s"]
    world.round(30)
    assert "s--v1" not in serve.apps
    assert world.registry.holds("io", 1) == []
