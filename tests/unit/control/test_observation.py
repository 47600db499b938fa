"""What control sees of services where several applications say something of the same one."""

from __future__ import annotations

import logging

import pytest

from sundog.control import observation
from sundog.control.observation import observe
from sundog.control.serving_plan import ANCHOR
from sundog.rayapi.serve_apps import AppView, DeploymentView


def anchor(name, service, model="m", status="RUNNING"):
    config = {"spec": {"service": service, "model": model}}
    return AppView(name, status, "", {ANCHOR: DeploymentView("HEALTHY", "", config, 0)})


@pytest.fixture
def seen(monkeypatch):
    def look(before, *apps):
        found = {app.name: app for app in apps}
        monkeypatch.setattr(observation.serve_apps, "applications", lambda: found)
        return observe(before)

    return look


def test_the_application_that_declared_a_service_first_stays_its_anchor(seen, caplog):
    both = anchor("a", "s", "other"), anchor("b", "s", "mine")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert seen({"s": "b"}, *both).specs["s"].model == "mine"
    [said] = [r.getMessage() for r in caplog.records]
    assert "both declare service s: what a says has no effect" in said
    assert seen({}, *both).anchors == {"s": "a"}
    assert seen({"s": "b"}, both[0]).anchors == {"s": "a"}, "the first is gone"
    assert seen({"s": "b"}, both[0], anchor("b", "s", status="DELETING")).anchors == {"s": "a"}
    assert seen({"s": "b"}, both[0], anchor("b", "t")).anchors == {"s": "a", "t": "b"}


def test_nobody_takes_over_while_the_first_is_rebuilt(seen):
    rebuilt = AppView("b", "DEPLOYING", "")
    found = seen({"s": "b"}, anchor("a", "s", "other"), rebuilt)
    assert found.specs == {}
    assert found.is_rebuilt("b")
