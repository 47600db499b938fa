"""What Ray Train's controller and a run's standbys tell the driver."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import ray
from toy import toy_spec

from sundog.runs import resizing
from sundog.runs.resizing import STANDBYS, RunResizer
from sundog.storage.root import open_root
from sundog.storage.runs import RunFolder


@pytest.fixture
def posted(monkeypatch):
    out = []

    class Channel:
        def __init__(self, run_id):
            pass

        def post(self, topic, message):
            out.append((topic, message))

    monkeypatch.setattr(resizing, "Channel", Channel)
    return out


@pytest.fixture
def resizer(tmp_path):
    return RunResizer.of(toy_spec(), {"folder": RunFolder(open_root(str(tmp_path)), "r-1")})


def test_standbys_are_posted_when_they_change(resizer, posted):
    for actors in ([], [], ["x"], ["x"], ["x", "y"], []):
        resizer.standing_by(actors)
    assert [m["actors"] for _, m in posted] == [[], ["x"], ["x", "y"], []]
    assert pickle.loads(pickle.dumps(resizer)).high == 4


def test_a_standby_says_where_it_is_before_and_after_it_is_ready(resizer, posted, monkeypatch):
    context = SimpleNamespace(get_actor_id=lambda: "x", get_node_id=lambda: "n")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(resizing, "prepare", lambda config: posted.append("prepared"))
    resizer.prepare()
    assert posted == [
        (f"{STANDBYS}/x", {"node_id": "n", "ready": False}),
        "prepared",
        (f"{STANDBYS}/x", {"node_id": "n", "ready": True}),
    ]
