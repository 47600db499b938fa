"""Wherever a recipe draws from, its run has the same bits at any number of workers, or is refused."""

from __future__ import annotations

import functools
import os
import random

import numpy as np
import pytest
import torch
from toy import Toy, toy_spec

from sundog.errors import RecipeError
from sundog.runs.exchange import Alone
from sundog.runs.loop import Loop
from sundog.runs.processes import Job, LocalGroup


class Rows:
    """A map-style data set that draws what it does to a row."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        noise = torch.rand(1) + np.random.rand() + random.random()
        return {"input": row["input"] + noise.float() / 10, "y": row["y"]}


class Drawing(Toy):
    """Draws its weights from numpy, and noise where it reads and where it measures."""

    def model(self):
        model = super().model()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.tensor(np.random.normal(size=p.shape)))
        return model

    def dataset(self, split):
        return Rows(super().dataset(split))

    def loss(self, model, batch, rng):
        return super().loss(model, batch, rng) + torch.rand(()) / 10


class Secretive(Toy):
    """Draws its weights where nobody can seed."""

    def model(self):
        torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
        return super().model()


def ended(spec, recipe, world):
    with LocalGroup(Job(spec, recipe)) as group:
        group.grow(world)
        group.form()
        states = set(group.settle())
        return states, group.result() if states == {"finished"} else None


def test_augmentation_weights_and_evaluation_may_draw_from_anywhere():
    spec = toy_spec(steps=6, evaluate=3)
    loop = Loop(spec, Drawing(rows=600))
    loop.join(Alone())
    assert loop.run().state == "finished"
    states, other = ended(spec, functools.partial(Drawing, rows=600), 2)
    assert states == {"finished"}
    whole = torch.cat([p.detach().flatten() for p in loop.params]).numpy()
    assert np.array_equal(other.parameters, whole)
    assert other.metrics == loop.metrics


def test_a_model_that_writes_a_buffer_is_refused_where_bits_are_promised():
    class Counting(Toy):
        def model(self):
            norm = torch.nn.InstanceNorm1d(2, track_running_stats=True)
            shape = torch.nn.Unflatten(1, (2, 4)), norm, torch.nn.Flatten()
            return torch.nn.Sequential(torch.nn.Linear(4, 8), *shape, torch.nn.Linear(8, 1))

    loop = Loop(toy_spec(), Counting())
    with pytest.raises(RecipeError, match="running_mean"):
        loop.join(Alone())


def test_first_weights_that_differ_are_refused_or_handed_out():
    states, _ = ended(toy_spec(steps=4), Secretive, 2)
    assert "finished" not in states
    states, _ = ended(toy_spec(steps=4, exact=False), Secretive, 2)
    assert states == {"finished"}
