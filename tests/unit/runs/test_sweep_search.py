"""The searchers alone: grids end, models learn and go on with what was known before."""

import pytest
from test_sweep_space import spec

from sundog.runs.sweep_search import Modelled, searcher


def quadratic(values):
    return -((values["x"] - 0.3) ** 2)


def test_a_grid_ends_where_its_combinations_do():
    found = searcher(spec(space={"a": {"choice": [1, 2, 3]}}, searcher="grid", trials=99))
    assert found.total == 3
    assert found.propose(2) == {"a": 3}
    capped = spec(space={"a": {"choice": [1, 2, 3]}}, searcher="grid", trials=2)
    assert searcher(capped).total == 2
    many = spec(space={"a": {"choice": list(range(40))}}, searcher="grid")
    assert searcher(many).total == 40  # without `trials` all of it
    assert searcher(spec()).total == 16


@pytest.mark.parametrize("options", [{}, {"multivariate": True}, {"sampler": "gp"}])
def test_a_model_comes_closer_than_its_random_start(options):
    one = spec(space={"x": {"uniform": [0, 1]}}, searcher={"optuna": {"startup": 5, **options}})
    model = searcher(one)
    seen = []
    for number in range(18):
        values = model.propose(number)
        seen.append(quadratic(values))
        model.ended(number, [seen[-1]], 1, cut=False)
    assert max(seen[5:]) > max(seen[:5])


def test_what_was_known_comes_back_and_the_rest_is_drawn_anew():
    one = spec(searcher="optuna")
    first = searcher(one)
    known = [first.propose(n) for n in range(3)]
    second = searcher(one, known=3)
    for number, values in enumerate(known):
        second.began(number, values)
        second.ended(number, [0.1 * number], 4, cut=number == 1)
    assert isinstance(second, Modelled)
    assert [t.params for t in second._study.trials] == known
    assert second.propose(3) not in known


def test_an_earlier_sweep_teaches_only_what_fits():
    model = searcher(spec(searcher="optuna"))
    assert isinstance(model, Modelled)
    good = model.propose(0)
    assert model.learn(good, [0.5])
    assert not model.learn({**good, "lr": 7.0}, [0.5])
    assert not model.learn(good, [float("nan")])


def test_choices_that_are_lists_survive():
    one = spec(space={"sizes": {"choice": [[8, 8], [16]]}}, searcher="optuna")
    values = searcher(one).propose(0)
    assert values["sizes"] in ([8, 8], [16])
    again = searcher(one, 1)
    again.began(0, values)
    assert again.learn(values, [1.0])
