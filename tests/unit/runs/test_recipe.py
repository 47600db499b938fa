from __future__ import annotations

import sys

import pytest
import torch

from sundog.errors import RecipeError
from sundog.runs.recipe import Columns, build, fetch, forward, resolve

GOOD = """
class Mine:
    def __init__(self, data=None, lr=1.0): self.lr = lr
    def model(self): pass
    def dataset(self, split): pass
    def loss(self, model, batch, rng): pass
    def optimizer(self, params): pass
    def example_inputs(self): return {}
class Half:
    def __init__(self, data=None): pass
    def model(self): pass
class Raises:
    def __init__(self, data=None): raise OSError("no such vocabulary")
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_recipe_a.py").write_text(GOOD)
    (tmp_path / "my_recipe_b.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "my_recipe_c.py").write_text("x = 1 / 0\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("my_recipe_")]:
        del sys.modules[name]


def test_a_recipe_is_found_from_the_working_directory(folder):
    assert build("my_recipe_a:Mine", None, {"lr": 2.0}, folder).lr == 2.0


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("my_recipe_z:Mine", "no module 'my_recipe_z'", "did you mean my_recipe_"),
        ("other:Mine", "no module 'other'", "working directory"),
        ("my_recipe_a:Mein", "has no 'Mein'", "did you mean my_recipe_a:Mine?"),
        ("my_recipe_b:Mine", "a_package_nobody_has", "requirements:"),
        ("my_recipe_c:Mine", "ZeroDivisionError", ""),
        ("my_recipe_a:number", "not a class", ""),
    ],
)
def test_what_cannot_be_resolved_says_why_and_what_to_do(folder, name, message, fix):
    with pytest.raises(RecipeError) as caught:
        resolve(name, folder)
    assert message in caught.value.message
    assert fix in caught.value.fix


def test_missing_methods_are_named(folder):
    with pytest.raises(RecipeError, match=r"lacks dataset\(\), loss\(\), optimizer\(\)"):
        build("my_recipe_a:Half", None, {}, folder)


def test_a_constructor_that_raises_is_blamed_on_its_line(folder):
    with pytest.raises(RecipeError, match=r"no such vocabulary \(my_recipe_a.py:13"):
        build("my_recipe_a:Raises", None, {}, folder)


def test_an_unknown_parameter_is_named(folder):
    with pytest.raises(RecipeError, match="depth"):
        build("my_recipe_a:Mine", None, {"depth": 3}, folder)


def test_a_batch_is_read_by_columns_or_row_by_row():
    columns = Columns(x=torch.arange(6), y=torch.arange(6) * 2)

    class Rows:
        def __getitem__(self, i):
            return columns[i]

    import numpy as np

    for source in (columns, Rows()):
        assert fetch(source, np.array([3, 1]))["y"].tolist() == [6, 2]


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        Columns(x=torch.zeros(2), y=torch.zeros(3))


def test_model_inputs_are_found_by_name():
    class Named:
        def example_inputs(self):
            return {"pixels": None}

    assert forward(Named(), lambda pixels: pixels + 1, {"pixels": 1, "label": 0}) == 2
    with pytest.raises(RecipeError, match="pixels"):
        forward(Named(), lambda pixels: pixels, {"image": 1})
    with pytest.raises(RecipeError, match="have no names"):
        forward(Named(), lambda pixels: pixels, [1, 2])
