"""A live service under load: replicas follow it, a killed one is not noticed, and it is profiled."""

from __future__ import annotations

import json

import httpx
import pytest
from rollout_kit import body
from serving_kit import serve_status, wait_for
from test_rollout_live import Service

from sundog.control.profiles import kept
from sundog.storage.root import open_root

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def service(local_ray, tmp_path_factory):
    """At most three replicas of a model that takes 50 ms a call."""
    one = Service(local_ray, tmp_path_factory.mktemp("scaled"), "scaled", {}, slow_s=0.05)
    one.deploy({}, replicas="1..3", batch=1)
    yield one
    one.undeploy()


def replicas(service):
    models = serve_status(service.ray)["scaled--v1"]["deployments"]["Model"]
    return models["target_num_replicas"], len(models["replicas"])


@pytest.mark.slow
def test_replicas_come_with_the_load_and_nobody_fails_when_they_go(service):
    assert replicas(service)[0] == 1
    with service.steady(rate=30, clients=8) as seen:
        wait_for("a second replica", lambda: replicas(service)[0] >= 2, 90)
        wait_for("it answers", lambda: service.row()["replicas"] >= 2, 90)
        shown = service.cli("service", "show", "scaled")
        assert "wanted: " in shown
    with service.steady(rate=2, clients=2) as calm:
        wait_for("one is enough again", lambda: replicas(service) == (1, 1), 180)
    assert not seen.failures
    assert not calm.failures


@pytest.mark.long
def test_a_drill_kills_a_replica_and_prints_what_callers_noticed(service):
    service.deploy({}, replicas=2, batch=1)
    wait_for("two replicas", lambda: service.row()["replicas"] == 2, 90)
    receipt = json.loads(
        service.cli("drill", "service", "scaled", "--rate", "10", "--yes", "--json")
    )
    assert (receipt["killed"], receipt["failed"]) == ("replica", 0)
    assert receipt["back_s"] is not None
    assert receipt["sent"] > 10
    assert "yes" in service.cli("drill", "service", "scaled", code=1), "it asks first"


@pytest.mark.long
def test_a_profile_finds_the_time_of_a_call_and_is_kept_beside_the_version(service, tmp_path):
    picture = tmp_path / "p.svg"
    found = json.loads(
        service.cli(
            "service",
            "profile",
            "scaled",
            "--from",
            "4",
            "--to",
            "200",
            "--step",
            "2",
            "--slo",
            "500ms",
            "--rate",
            "100",
            "--plot",
            str(picture),
            "--yes",
            "--json",
        )
    )
    assert 0.04 < found["service_s"] < 0.25
    assert 4 <= found["knee_rate"] < 80
    assert found["proposal"]["replicas"] > found["replicas"]
    assert "<svg" in picture.read_text()
    document = kept(open_root(service.root), "scaled", 1)
    assert document["service_s"] == found["service_s"]
    never = service.cli(
        "service", "profile", "scaled", "--from", "2", "--to", "3", "--step", "2",
        "--slo", "20ms", "--yes", code=1,
    )  # fmt: skip
    assert "meets 20 ms" in never
    assert httpx.get(f"{service.gateway}/v2/models/scaled/ready", trust_env=False).is_success


@pytest.mark.slow
def test_an_idle_service_sleeps_and_the_first_request_is_held_until_it_is_awake(service):
    service.deploy({}, replicas="0..2", keep_warm="5s", hold="60s", deadline="90s")
    wait_for("it sleeps", lambda: replicas(service)[0] == 0, 120)
    wait_for("nobody is there", lambda: service.row()["replicas"] == 0, 60)
    assert httpx.get(f"{service.gateway}/v2/models/scaled/ready", trust_env=False).is_success
    answer = httpx.post(
        f"{service.gateway}/v2/models/scaled/infer", content=body(3), timeout=90, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [1.0, 0.0]
