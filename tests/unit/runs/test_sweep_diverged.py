"""NaN is the worst there is: cut by every scheduler, told to searchers, no failure of the sweep."""

import math

import pytest
from ray.tune.experiment import Trial as TuneTrial
from test_sweep_book import folder  # noqa: F401
from test_sweep_meter import FOUR, conducted, price
from test_sweep_space import spec

from sundog.clock import ManualClock
from sundog.runs import sweep_book
from sundog.runs.sweep_book import Journal, Trial
from sundog.runs.sweep_conduct import outcome
from sundog.runs.sweep_schedule import Watched, scheduler
from sundog.runs.sweep_search import searcher
from sundog.runs.sweep_table import best_of


class Tuned:
    """A trial and its controller, as far as schedulers look at one."""

    status, config = TuneTrial.RUNNING, {}

    def __init__(self, name):
        self.trial_id, self.last_result = name, {}

    def is_finished(self):
        return False


def watched(one, past=None):
    made = Watched(scheduler(one, 9), one, 9, past or {}, list(past or ()), lambda name: 0.1)
    trials = [Tuned(f"t{n}") for n in range(4)]
    for trial in trials:
        made.on_trial_add(None, trial)
    return made, trials


def say(made, trial, number, value):
    result = {"report": number, "accuracy": value, "training_iteration": number}
    return made.on_trial_result(None, trial, result)


@pytest.mark.parametrize(
    "chosen", [{"asha": {"grace": 2, "eta": 2}}, {"median": {"grace": 2, "least": 1}}]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_trial_without_a_number_is_cut_after_the_grace(chosen, value):
    made, (one, other, third, _) = watched(
        spec(scheduler=chosen), {"old": [(1, math.nan), (2, 0.2)]}
    )
    assert say(made, one, 1, value) == made.CONTINUE
    assert say(made, one, 2, value) == made.STOP
    assert "after 2 reports" in made.reason("t0")
    made.on_trial_complete(None, one, {"accuracy": value, "report": 2})
    # It neither lifts nor lowers what the others are compared with.
    for number in (1, 2):
        assert say(made, other, number, 0.9) == made.CONTINUE
    said = [say(made, third, number, 0.1) for number in (1, 2)]
    assert said[-1] == made.STOP


def test_halving_pauses_what_has_no_number():
    made, (one, other, *_) = watched(spec(scheduler={"halving": {"grace": 1, "keep": 0.5}}))
    assert say(made, other, 1, 0.1) == made.CONTINUE
    assert say(made, one, 1, math.inf) == made.PAUSE


def test_a_searcher_hears_that_a_configuration_diverged():
    one = spec(searcher={"optuna": {"startup": 4}}, space={"x": {"uniform": [0, 1]}}, seed=2)
    bad = Trial(
        "t",
        state="stopped",
        diverged=True,
        value=0.9,
        metrics={"accuracy": 0.9},
        reports=[(1, 0.9)],
    )
    assert outcome([bad], one) == (None, 1, True)
    model = searcher(one)
    for number, worst in enumerate((False, True, False)):
        model.propose(number)
        model.ended(number, None if worst else [0.5], 1, cut=worst)
    # Pruned without any value: below all others, where a failed one would be forgotten.
    assert [t.state.name for t in model._study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_repeats_are_told_as_their_mean_and_only_when_all_have_ended():
    one = spec(repeats=2)
    group = [Trial(f"t{n}", state="finished", value=v, metrics={"accuracy": v}, reports=[(3, v)])
             for n, v in enumerate((0.4, 0.8))]  # fmt: skip
    assert outcome(group, one) == ([pytest.approx(0.6)], 3, False)
    assert outcome(group[:1], one) is None
    group[1].state = "waiting"
    assert outcome(group, one) is None


def test_a_diverged_trial_is_stopped_kept_and_no_failure(folder):  # noqa: F811
    clock = ManualClock(1000.0)
    price(folder, "n1", (0.0, 4.0))
    conductor, _ = conducted(folder, clock, {"n1": FOUR}, max_failed=1, trials=5)
    for n in range(3):
        name = conductor.following().trial_id
        trial = Tuned(name)
        trial.config = conductor.book.trials[name].params
        report = {
            "report": 1,
            "step": 1,
            "steps": 3,
            "measured": {"accuracy": math.nan if n else 0.5},
        }
        conductor.on_trial_result(0, [], trial, report)
        fault = {
            "fault": "the loss became nan at step 2",
            "fix": "",
            "fatal": False,
            "diverged": True,
        }
        conductor.on_trial_result(0, [], trial, fault)
    assert not conductor.stop_all()
    conductor.close()
    book = sweep_book.read(folder)
    assert [t.state for t in book.trials.values()] == ["stopped"] * 3
    assert all("nan at step 2" in t.why and t.diverged for t in book.trials.values())
    assert best_of(list(book.trials.values()), spec()).name == "trial-000"
    from sundog.runs.sweep import _journal

    again = _journal(spec(), folder).book
    assert all(t.ended for t in again.trials.values())


def test_infinity_is_never_the_best_of_a_book(folder):  # noqa: F811
    journal = Journal(folder, "max")
    journal.write("trial", trial="a", number=0, repeat=0, params={})
    for number, value in enumerate((math.inf, 0.3, math.nan, -math.inf), 1):
        journal.write("report", trial="a", report=number, value=value, step=number, steps=9,
                      metrics={"accuracy": value}, spent=[None, 0.0])  # fmt: skip
    assert journal.book.trials["a"].value == 0.3
    assert sweep_book.read(folder).trials["a"].value == 0.3
