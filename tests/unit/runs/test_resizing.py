"""What Ray Train's controller and a run's standbys tell the driver."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import ray
from toy import toy_spec

from sundog.clock import WALL
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

        def read(self, topic):
            return dict(out).get(topic)

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
    before, prepared, after = posted
    assert prepared == "prepared"
    assert before[0] == after[0] == f"{STANDBYS}/x"
    assert [(m["node_id"], m["ready"]) for _, m in (before, after)] == [("n", False), ("n", True)]
    assert after[1]["took_s"] >= 0


def standby(posted, name: str, ready: bool, began_ago_s: float, took_s: float = 10.0) -> None:
    began_s = WALL.now_s() - began_ago_s
    posted.append((f"{STANDBYS}/{name}", {"node_id": name, "ready": ready, "began_s": began_s,
                                          **({"took_s": took_s} if ready else {})}))  # fmt: skip


@pytest.mark.parametrize(
    ("began_ago_s", "workers"),
    [(9.9, 2), (3.0, 3), (60.0, 3)],  # nearly ready, not yet, and who knows when
)
def test_one_pause_is_for_both_when_the_other_is_nearly_ready(
    resizer, posted, began_ago_s, workers
):
    resizer.standing_by(["a", "b"])
    standby(posted, "a", True, 20.0)
    standby(posted, "b", False, began_ago_s)
    assert resizer.with_warm(2, 1) == workers


def test_nobody_joins_a_run_that_ends_before_it_pays(resizer, posted):
    news = {"step": 90, "steps": 100, "epoch": 1.0, "batch": 24}
    assert resizer.with_warm(2, 1) == 3  # without news nobody knows
    posted.append(("progress", {**news, "samples_s": 24.0}))  # ten seconds are left
    assert resizer.with_warm(2, 1) == 3
    posted.append(("progress", {**news, "samples_s": 240.0}))
    assert resizer.with_warm(2, 1) == 2
