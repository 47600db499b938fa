"""A contradictory sweep is refused with what to write instead."""

import pytest
from pydantic import ValidationError

from sundog.spec.sweep import SweepSpec

BASE = {
    "sweep": "s", "run": {"run": "r", "recipe": "a:B", "steps": 10}, "metric": "accuracy",
    "space": {"o": {"choice": ["sgd", "adam"]}, "lr": {"log": [0.001, 0.1]}},
}  # fmt: skip


def test_a_bare_name_is_all_defaults_and_survives_the_record():
    spec = SweepSpec.model_validate({**BASE, "scheduler": "asha", "searcher": "optuna"})
    assert spec.scheduler.name == "asha"
    assert spec.scheduler.asha
    assert spec.scheduler.asha.eta == 3
    assert SweepSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert SweepSpec.model_validate(BASE).scheduler.fifo is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scheduler": "ashaa"}, "did you mean 'asha'"),
        ({"scheduler": {"asha": {}, "median": {}}}, "exactly one"),
        ({"space": {}}, "at least 1"),
        ({"space": {"lr": {"log": [0.1, 0.001]}}}, "is empty"),
        ({"space": {"lr": {"log": [0, 1]}}}, "above 0"),
        ({"searcher": "grid"}, "a grid needs choices"),
        ({"space": {"m": {"uniform": [0, 1], "when": {"o": "sgd"}}}}, "no parameter above"),
        (
            {"space": {**BASE["space"], "m": {"uniform": [0, 1], "when": {"o": "rms"}}}},
            "never 'rms'",
        ),
        (
            {"space": {**BASE["space"], "m": {"uniform": [0, 1], "when": {"lr": 0.1}}}},
            "no choice",
        ),
        ({"space": {"lr": {"uniform": [0, float("nan")]}}}, "finite"),
        ({"space": {"lr": {"uniform": [float("-inf"), 1]}}}, "has no end"),
        ({"space": {"lr": {"log": [1, float("inf")]}}}, "has no end"),
        ({"space": {"lr": {"choice": [0.1, float("nan")]}}}, "must be finite"),
        ({"space": {**BASE["space"], "m": {"uniform": [0, 1], "when": {"o": []}}}}, "one of none"),
        (
            {
                "space": {
                    **BASE["space"],
                    "m": {"choice": [1, 2], "when": {"o": "sgd"}},
                    "b": {"choice": [1, 2], "when": {"o": ["adam"]}},
                    "n": {"uniform": [0, 1], "when": {"m": 1, "b": [1, 2]}},
                }
            },
            "space.n.when: no configuration ever has it.* want o",
        ),
        ({"concurrent": 0}, "greater than or equal to 1"),
        ({"concurrent": -3}, "greater than or equal to 1"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"also": {"accuracy": "min"}}, "already"),
        ({"metric": "usd"}, "only stand in also"),
        ({"warm_start": ["s-1"]}, "only searcher: optuna"),
        ({"repeats": 2, "scheduler": "asha"}, "to its end"),
        ({"scheduler": {"pbt": {"mutate": ["nix"]}}}, "no parameter of the space"),
        ({"scheduler": {"pbt": {"mutate": ["lr"]}}, "searcher": "optuna"}, "starts at random"),
        (
            {
                "space": {"run.batch": {"choice": [64, 128]}},
                "scheduler": {"pbt": {"mutate": ["run.batch"]}},
            },
            "fixed when it begins",
        ),
        ({"space": {"run.bach": {"choice": [1]}}}, "did you mean 'batch'"),
        ({"space": {"run.workers": {"choice": [1, 2]}}}, "all trials have it alike"),
        ({"run": {**BASE["run"], "max_usd": 3}}, "run.max_usd: write it beside metric"),
        ({"run": {**BASE["run"], "layout": "fsdp", "exact": False}}, "cannot be sharded"),
    ],
)
def test_contradictions(change, says):
    with pytest.raises(ValidationError, match=says):
        SweepSpec.model_validate({**BASE, **change})


def test_conditions_that_can_hold_together_are_taken():
    space = {
        **BASE["space"],
        "m": {"choice": [1, 2], "when": {"o": ["sgd", "adam"]}},
        "n": {"uniform": [0, 1], "when": {"m": 1, "o": "adam"}},
        "p": {"uniform": [0, 1], "when": {}},
    }
    assert SweepSpec.model_validate({**BASE, "space": space}).space["n"].when == {
        "m": 1,
        "o": "adam",
    }
