"""Rollouts on a real Serve under steady load: good versions get through, bad ones come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from rollout_kit import body, register, row, steady
from serving_kit import processes, serve_status, wait_for, wait_ready, write_deployment

from sundog.control import serve_files
from sundog.storage.models import Registry
from sundog.storage.root import open_root

CANARY = {
    "strategy": "canary", "steps": [0.1, 0.5], "guards": ["errors"], "every": "2s",
    "floor": 0.01, "patience": "5min",
}  # fmt: skip


class Service:
    """One service at model `name`@champion, deployed with a rollout spec; version 1 answers."""

    def __init__(self, ray, tmp, name, rollout, **first):
        self.ray, self.tmp, self.name = ray, tmp, name
        self.root, self.gateway = ray.endpoints.root, ray.endpoints.gateway
        self.registry = Registry(open_root(self.root))
        register(self.root, name, tmp, alias="champion", **first)
        self.deploy(rollout)
        wait_ready(self.gateway, name)

    def deploy(self, rollout, **more):
        spec = {
            "service": self.name, "model": f"{self.name}@champion", "allow_code": True,
            "rollout": rollout, **more,
        }  # fmt: skip
        file = write_deployment(self.tmp / f"{self.name}.yaml", spec)
        serve_files.deploy_file(file, self.ray.endpoints.dashboard)

    def release(self, **faults):
        """Register the next version and move the alias to it."""
        return register(self.root, self.name, self.tmp, alias="champion", **faults)

    def steady(self, **how):
        return steady(self.gateway, self.name, **how)

    def cli(self, *words, code=0):
        command = [str(Path(sys.executable).parent / "sundog"), *words]
        environment = {
            **self.ray.environment(), "RAY_ADDRESS": self.ray.endpoints.gcs,
            "SUNDOG_GATEWAY": self.gateway,
        }  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert code in (done.returncode, None), done.stdout + done.stderr
        return done.stdout + done.stderr

    def row(self):
        return row(self.gateway, self.name)

    def ended(self, word, timeout_s=120):
        """Until the rollout's status begins with the word."""
        shown = [""]

        def look():
            # A control that was killed answers nothing for some seconds.
            shown[0] = self.cli("rollout", "status", self.name, code=None)
            return word in shown[0].splitlines()[0]

        try:
            wait_for(f"{self.name} {word}", look, timeout_s)
        except AssertionError:
            raise AssertionError(f"{self.name} is not {word}: {shown[0]}") from None

    def kill_control(self):
        """The rollout must go on from what is stored, and requests must not notice."""
        [control] = processes(self.ray, "ray::Control")
        os.kill(control.pid, signal.SIGKILL)

    def undeploy(self):
        serve_files.undeploy(self.name, self.ray.endpoints.dashboard)
        wait_for("gone", lambda: not any(a.startswith(f"{self.name}--") for a in
                                         serve_status(self.ray)))  # fmt: skip


@pytest.fixture
def service(local_ray, tmp_path):
    made = []

    def make(name, rollout, **first):
        made.append(Service(local_ray, tmp_path, name, rollout, **first))
        return made[-1]

    yield make
    for one in made:
        one.undeploy()


# In each of these the controller is killed on the way.


def test_a_good_version_is_promoted_although_control_is_killed_and_nobody_notices(
    service, local_ray
):
    digits = service("canary-good", CANARY)
    with digits.steady() as seen:
        digits.release()
        wait_for("both answer", lambda: seen.answers["2"] > 20)
        digits.kill_control()
        wait_for("all on version 2", lambda: digits.row()["weights"] == {"2": 1.0})
        wait_for("version 1 is away", lambda: "canary-good--v1" not in serve_status(local_ray))
    assert not seen.failures
    words = digits.cli("rollout", "status", "canary-good")
    assert "promoted" in words
    assert "errors" in words
    # Long after promotion: back at once, and the alias follows.
    digits.cli("rollback", "canary-good", "--yes")
    wait_for("back on version 1", lambda: digits.row()["weights"] == {"1": 1.0})
    assert digits.registry.aliases("canary-good")["champion"] == 1
    assert "no rollout" in digits.cli("rollout", "abort", "canary-good", "--yes", code=1)


@pytest.mark.slow
def test_a_version_with_errors_comes_back_and_few_have_met_it(service):
    digits = service("canary-bad", CANARY)
    with digits.steady() as seen:
        digits.release(fail_every=20)
        wait_for("both answer", lambda: seen.answers["2"] > 5)
        digits.kill_control()
        digits.ended("rolled back")
        wait_for("all on version 1", lambda: digits.row()["weights"] == {"1": 1.0})
        before = seen.failed
        count = seen.total
        wait_for("load goes on", lambda: seen.total > count + 300)
    assert 0 < before == seen.failed <= 60
    assert all("500" in words for words in seen.failures)
    assert digits.registry.aliases("canary-bad")["champion"] == 1
    words = digits.cli("rollout", "status", "canary-bad")
    assert "evidence of harm" in words
    assert "100% to version 1" in words


@pytest.mark.slow
def test_a_slower_version_comes_back(service):
    guards = {**CANARY, "guards": ["latency"]}
    digits = service("canary-slow", guards, slow_s=0.01)
    with digits.steady(rate=60) as seen:
        digits.release(slow_s=0.02)
        wait_for("both answer", lambda: seen.answers["2"] > 5)
        digits.kill_control()
        digits.ended("rolled back", 240)
        wait_for("all on version 1", lambda: digits.row()["weights"] == {"1": 1.0})
    assert not seen.failures


@pytest.mark.long
def test_a_version_that_crashes_when_it_loads_never_gets_traffic(service, local_ray):
    digits = service("canary-crash", CANARY)
    with digits.steady(rate=100) as seen:
        digits.release(crash=True)
        wait_for("version 2 is tried", lambda: "canary-crash--v2" in serve_status(local_ray))
        digits.kill_control()
        digits.ended("rolled back", 240)
    assert not seen.failures
    assert set(seen.answers) == {"1"}
    assert "does not load" in digits.cli("rollout", "status", "canary-crash")


@pytest.mark.slow
def test_subtly_wrong_answers_come_back_by_feedback(service):
    digits = service("canary-wrong", {**CANARY, "guards": ["errors", "feedback"]})
    with digits.steady(rate=150, feedback=True) as seen:
        digits.release(wrong_every=4)
        wait_for("both answer", lambda: seen.answers["2"] > 5)
        digits.kill_control()
        digits.ended("rolled back", 240)
    assert not seen.failures
    assert "feedback" in digits.cli("rollout", "status", "canary-wrong")
    lost = httpx.post(
        f"{digits.gateway}/feedback", json={"request_id": "nobody's", "score": 1}, trust_env=False
    )
    assert lost.status_code == 404
    assert "remembered" in lost.json()["error"]


@pytest.mark.long
def test_blue_green_switches_and_returns_without_a_failed_request(service, local_ray):
    blue_green = {
        "strategy": "blue-green", "guards": ["errors"], "every": "4s", "floor": 0.01,
        "standby": "10min",
    }  # fmt: skip
    digits = service("blue-green", blue_green)
    with digits.steady(rate=200) as seen:
        wait_for("a reference", lambda: seen.total > 1000)
        digits.release()
        digits.ended("promoted", 120)
        wait_for("all on version 2", lambda: digits.row()["weights"] == {"2": 1.0})
        assert "blue-green--v1" in serve_status(local_ray), "the old one stays warm"
        began = time.monotonic()
        digits.cli("rollback", "blue-green", "--yes")
        wait_for("back", lambda: digits.row()["weights"] == {"1": 1.0}, 20)
        count = seen.answers["1"]
        wait_for("version 1 answers", lambda: seen.answers["1"] > count + 200)
    assert not seen.failures
    assert all(version == "1" for at, version in seen.versions if at > began + 15)


@pytest.mark.long
def test_a_shadow_shows_what_differs_and_never_answers(service):
    shadow = {
        "strategy": "shadow", "guards": ["errors", "answers"], "every": "2s", "floor": 0.01,
    }  # fmt: skip
    digits = service("shadow", shadow)
    with digits.steady(rate=150) as seen:
        digits.release(wrong_every=4)
        digits.ended("rolled back", 240)
    assert not seen.failures
    assert set(seen.answers) == {"1"}
    words = digits.cli("rollout", "status", "shadow")
    assert "answers that differed" in words


@pytest.mark.long
def test_ab_sticks_by_header_until_somebody_decides(service):
    ab = {"strategy": "ab", "share": "50%", "sticky": "header:x-user", "guards": ["errors"]}
    digits = service("ab", ab)
    digits.release()
    wait_for("both get traffic", lambda: len(digits.row()["weights"]) == 2)

    def version_of(user):
        answer = httpx.post(
            f"{digits.gateway}/v2/models/ab/infer", content=body(1), headers={"x-user": user},
            trust_env=False,
        )  # fmt: skip
        return answer.json()["model_version"]

    users = {f"u{i}": version_of(f"u{i}") for i in range(40)}
    assert set(users.values()) == {"1", "2"}
    assert all(version_of(user) == version for user, version in users.items())
    paused = digits.cli("rollout", "pause", "ab")
    assert "paused" in paused.splitlines()[0]
    assert "50% to version 2" in paused
    digits.cli("rollout", "resume", "ab")
    assert "ab@7" in digits.cli("rollback", "ab", "7", "--yes", code=1)
    assert len(digits.row()["weights"]) == 2, "a version that is not there changes nothing"
    digits.cli("rollout", "promote", "ab", "--yes")
    wait_for("all on version 2", lambda: digits.row()["weights"] == {"2": 1.0})


@pytest.mark.long
def test_what_cannot_be_compared_is_not_rolled_out(service):
    digits = service("canary-other", CANARY)
    digits.release(width=2)
    words = wait_for("it says why", lambda: digits.row()["message"])
    assert "was not rolled out" in str(words)
    assert digits.row()["weights"] == {"1": 1.0}
    assert "no rollout" in digits.cli("rollout", "status", "canary-other", code=1)
