"""Configurations are functions of seed and number; conditions and changes are seen."""

from hypothesis import given
from hypothesis import strategies as st

from sundog.runs.sweep_space import difference, draw, grid, holds, identity
from sundog.spec.sweep import SweepSpec

RUN = {"run": "r", "recipe": "a:B", "steps": 10}
SPACE = {
    "optimizer": {"choice": ["sgd", "adam"]},
    "lr": {"log": [1e-4, 1e-1]},
    "momentum": {"uniform": [0.0, 0.9], "when": {"optimizer": "sgd"}},
    "layers": {"int": [1, 3]},
}


def spec(**changes):
    return SweepSpec.model_validate(
        {"sweep": "s", "run": RUN, "space": SPACE, "metric": "accuracy", **changes}
    )


@given(st.integers(0, 10**6), st.integers(0, 10**4))
def test_a_draw_is_a_function_of_seed_and_number_and_lies_in_the_space(seed, number):
    one = spec(seed=seed)
    values = draw(one, number)
    assert values == draw(spec(seed=seed, trials=3, max_usd=1), number)
    assert holds(one, values)
    assert ("momentum" in values) == (values["optimizer"] == "sgd")
    assert values["layers"] in (1, 2, 3)


def test_other_numbers_and_seeds_draw_others():
    assert draw(spec(), 0) != draw(spec(), 1)
    assert draw(spec(), 0) != draw(spec(seed=1), 0)


def test_a_grid_has_every_combination_once_and_conditions_thin_it():
    choices = {
        "a": {"choice": [1, 2]},
        "b": {"choice": ["x", "y", "z"], "when": {"a": 2}},
    }
    found = grid(spec(space=choices, searcher="grid"))
    assert found == [{"a": 1}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}, {"a": 2, "b": "z"}]


def test_what_lies_outside_the_space_is_told_apart():
    good = draw(spec(), 0)
    assert not holds(spec(), {**good, "lr": 0.5})
    assert not holds(spec(), {**good, "more": 1})
    assert not holds(spec(), {k: v for k, v in good.items() if k != "lr"})


def test_only_a_change_of_the_search_itself_is_a_difference():
    before = identity(spec())
    free = {"trials": 99, "max_usd": 2, "concurrent": 1, "run": {**RUN, "resources": {"cpus": 2}}}
    assert difference(before, identity(spec(**free))) == ""
    wider = {**SPACE, "lr": {"log": [1e-5, 1e-1]}}
    assert "space.lr" in difference(before, identity(spec(space=wider)))
    assert "1e-05" in difference(before, identity(spec(space=wider)))
    assert "scheduler" in difference(before, identity(spec(scheduler="asha")))
    assert "run.steps: 10 → 11" in difference(before, identity(spec(run={**RUN, "steps": 11})))
