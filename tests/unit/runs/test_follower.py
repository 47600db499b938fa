"""What the driver does with the workers' news: here the budget, the bill being another test's."""

from __future__ import annotations

import json

import pytest

from sundog import telemetry
from sundog.runs import follower
from sundog.runs.follower import Follower
from sundog.runs.resizing import STANDBYS
from sundog.runs.worker import STOP_ASKED
from sundog.storage.root import open_root
from sundog.storage.runs import new_run

HOUR_S = 3600.0


class Posted:
    """The channel of a run, without a Ray."""

    def __init__(self):
        self.topics = {}

    def read(self, topic):
        return self.topics.get(topic)

    def post(self, topic, message):
        self.topics[topic] = message


@pytest.fixture
def scene(tmp_path, monkeypatch):
    root = open_root(str(tmp_path))
    said = []
    monkeypatch.setattr(follower, "say", lambda folder, text: said.append(text))
    return root, new_run(root, "r", "r"), Posted(), said


def news(follower_, hours: float, nodes=("a", "b")) -> dict:
    at_s = follower_._started_s + hours * HOUR_S
    placed = [{"node_id": node, "rank": i} for i, node in enumerate(nodes)]
    return {
        "step": int(hours * 100), "steps": 1000, "epoch": 1.0, "loss": 0.5, "samples_s": 10.0,
        "world": len(nodes), "metrics": {}, "at_s": at_s, "group": "g", "stall_s": 0.0,
        "placed": placed, "joined_s": at_s, "left_off": {"step": -1, "at_s": None},
    }  # fmt: skip


def price(root, node: str, usd_hour: float | None) -> None:
    prices = [] if usd_hour is None else [[0.0, usd_hour]]
    root.write(f"nodes/{node}.json", json.dumps({"format": 1, "prices": prices}).encode())


def test_the_workers_are_asked_to_stop_while_the_money_lasts(scene):
    root, folder, channel, _ = scene
    price(root, "a", 1.0)
    price(root, "b", 2.0)
    follow = Follower(folder, channel, max_usd=3.0)
    for hours, asked in ((0.5, False), (0.99, False), (0.9999, True)):
        channel.topics["progress"] = news(follow, hours)
        follow()
        assert (STOP_ASKED in channel.topics) == asked, hours
    assert channel.topics[STOP_ASKED]["usd"] <= 3.0


def test_what_earlier_drivers_spent_counts(scene):
    root, folder, channel, _ = scene
    folder.update(node_hours=1.0, usd=2.5)
    price(root, "a", 1.0)
    follow = Follower(folder, channel, max_usd=3.0)
    for hours in (0.25, 0.51):
        channel.topics["progress"] = news(follow, hours, ["a"])
        follow()
    assert STOP_ASKED in channel.topics


def test_nodes_without_a_price_are_said_once_and_never_guessed(scene):
    root, folder, channel, said = scene
    price(root, "a", 1.0)
    price(root, "b", None)
    follow = Follower(folder, channel, max_usd=0.01)
    for hours in (1.0, 2.0):
        channel.topics["progress"] = news(follow, hours)
        follow()
    assert STOP_ASKED not in channel.topics
    assert sum("has no price" in line for line in said) == 1


def test_a_killed_driver_is_a_change_with_its_stages(scene):
    _, folder, channel, said = scene
    placed = [{"node_id": node} for node in ("a", "b")]
    folder.update(step=1000, workers=2, placed=placed, cut_off=True, accounted_s=1.0)
    follow = Follower(folder, channel)
    folder.update(accounted_s=None)
    follow._before["accounted_s"] = follow._started_s - 30
    at_s = follow._started_s + 20
    channel.topics["progress"] = news(follow, 0) | {
        "step": 701, "at_s": at_s, "joined_s": at_s - 1, "group": "token"
    }  # fmt: skip
    channel.topics["regroup"] = {"token": "token", "cause": "start", "gathered_s": at_s - 5}
    follow()
    [event] = [e for e in folder.events() if e["event"] == telemetry.RUN_RECOVERED]
    assert event["cause"] == "driver"
    assert (event["steps_back"], event["workers"]) == (300, [2, 2])
    assert event["took_s"] == pytest.approx(50)
    assert event["stages"] == pytest.approx(
        {"noticed": 30, "gathered": 15, "formed": 4, "stepped": 1}
    )
    assert any("300 steps again" in line for line in said)
    assert folder.record()["account"]["recomputed"] == 0  # no step of it was accounted before


def test_a_standby_s_node_is_in_the_record_and_on_the_bill(scene):
    root, folder, channel, _ = scene
    price(root, "a", 1.0)
    price(root, "b", 2.0)
    follow = Follower(folder, channel)
    channel.topics[STANDBYS] = {"actors": ["x", "not-there-yet"]}
    channel.topics[f"{STANDBYS}/x"] = {"node_id": "b", "ready": True}
    for hours in (0.0, 10.0):  # the last step
        channel.topics["progress"] = news(follow, hours, ["a"])
        follow()
    record = folder.record()
    assert record["usd"] == pytest.approx(30.0)
    assert record["account"]["idle"] == pytest.approx(10 * HOUR_S)
    assert record["account_usd"]["idle"] == pytest.approx(20.0)
