"""The talk between a trial's workers and Tune, without either: each report once, nobody left waiting."""

import json
from concurrent.futures import Future
from threading import Thread
from types import SimpleNamespace

import pytest
from test_sweep_space import spec

from sundog.errors import RunError
from sundog.rayapi.train_slot import SLOT
from sundog.runs import trial_group
from sundog.runs.trial import NoMetric
from sundog.runs.worker import FAULT
from sundog.spec.run import RunSpec


class Channel:
    """As the one in Ray: the last message under a topic."""

    def __init__(self):
        self.kept = {}

    def post(self, topic, message):
        self.kept[topic] = json.dumps(message)

    def read(self, topic):
        return json.loads(self.kept[topic]) if topic in self.kept else None


def told(number, **metrics):
    return {
        "metrics": metrics or {"accuracy": number / 10}, "number": number, "step": number,
        "steps": 9, "prefix": "p", "nodes": ["n1", "n2"],
    }  # fmt: skip


class Workers:
    """Post their reports one after the other, as they are answered, then end with an outcome."""

    def __init__(self, channel, reports, outcome):
        self.fitting: Future = Future()
        self._channel, self._reports, self._outcome = channel, reports, outcome

    def __enter__(self):
        Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._reports = []

    def _run(self):
        for report in list(self._reports):
            self._channel.post(trial_group._REPORT, report)
            while (self._channel.read(trial_group._ANSWER) or {"number": 0})["number"] < (
                report["number"]
            ):
                if not self._reports:
                    return
        self.fitting.set_result(SimpleNamespace(return_value=self._outcome))


@pytest.fixture
def sent(monkeypatch):
    out = []
    monkeypatch.setattr(trial_group, "send", lambda one, **report: out.append(report))
    return out


def relay(workers, channel):
    run = RunSpec.model_validate({"run": "r", "recipe": "a:B", "steps": 9})
    return trial_group._relay(spec(), run, channel, workers.fitting)


def test_each_report_is_handed_on_once_and_answered(sent):
    channel = Channel()
    # The second comes again: the workers had to form a new group.
    reports = [told(1), told(2), told(2), told(3)]
    with Workers(channel, reports, {"state": "finished"}) as workers:
        assert relay(workers, channel) == {"state": "finished"}
    assert [r["number"] for r in sent] == [1, 2, 3]
    assert sent[0]["nodes"] == ["n1", "n2"]


def test_tune_s_word_ends_the_waiting(monkeypatch):
    def ended(one, **report):
        raise SystemExit(0)

    monkeypatch.setattr(trial_group, "send", ended)
    channel = Channel()
    with Workers(channel, [told(1)], None) as workers, pytest.raises(SystemExit):
        relay(workers, channel)
    assert channel.read(trial_group._ANSWER) is None


def test_a_metric_that_nobody_reports_ends_it(sent):
    channel = Channel()
    with Workers(channel, [told(1, loss=0.5)], None) as workers, pytest.raises(NoMetric):
        relay(workers, channel)
    assert sent == []


def test_what_one_worker_says_is_why_all_ended(sent):
    channel = Channel()
    channel.post(FAULT, {"why": "the disk is full", "fix": "empty it"})
    with Workers(channel, [], {"state": "lost"}) as workers:
        found = relay(workers, channel)
    assert (found["state"], found["why"]) == ("failed", "the disk is full")


class Loop:
    step, steps, evaluate_every = 6, 9, 3

    def __init__(self, rank):
        self.exchange = SimpleNamespace(rank=rank)
        self.metrics = {"accuracy": 0.5}
        self.tell = SimpleNamespace(placed=[{"node_id": "n1"}, {"node_id": "n2"}])


def reporter(channel):
    kept = SimpleNamespace(
        refresh=lambda: None, improved=lambda value, mode: False, prefix="p", note=lambda *a: None,
        make_room=lambda step: None,
    )  # fmt: skip
    saver = SimpleNamespace(_saved_step=3, offer=lambda loop, now: None, close=lambda: None)
    return trial_group.GroupReporter(spec(), kept, saver, channel)  # type: ignore[arg-type]


def test_the_first_worker_reports_and_all_wait_for_the_answer():
    channel = Channel()
    threads = [Thread(target=reporter(channel), args=(Loop(rank),)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    while channel.read(trial_group._REPORT) is None:
        assert threads[0].is_alive()
    assert channel.read(trial_group._REPORT)["number"] == 2
    assert all(t.is_alive() for t in threads)
    channel.post(trial_group._ANSWER, {"number": 2})
    for thread in threads:
        thread.join(60)
    assert not any(t.is_alive() for t in threads)


def test_others_do_not_wait_for_a_first_worker_that_failed():
    channel = Channel()
    channel.post(FAULT, {"why": "the disk is full", "fix": ""})
    with pytest.raises(RunError, match="disk is full"):
        reporter(channel)(Loop(1))


def test_the_controller_gets_its_workers_back_without_an_answer(monkeypatch):
    from sundog.runs.loop import YIELD

    monkeypatch.setattr(trial_group, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(SLOT, "ask", YIELD)
    reporter(Channel())(Loop(1))
