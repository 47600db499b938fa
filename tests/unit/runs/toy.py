"""A small recipe for the tests of the runs room: a linear model with dropout on made-up rows."""

from __future__ import annotations

import numpy as np
import torch

from sundog.runs.recipe import Columns, Recipe
from sundog.spec.run import RunSpec


class Toy(Recipe):
    def __init__(self, data=None, rows: int = 100, fail: str = "", bad_step: int = -1, **more):
        super().__init__(data, **more)
        self.rows, self.fail, self.bad_step = rows, fail, bad_step
        self.calls = 0

    def model(self):
        if self.fail == "model":
            raise ValueError("no such layer")
        layers = [torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)]
        if self.fail == "batchnorm":
            layers.insert(1, torch.nn.BatchNorm1d(8))
        return torch.nn.Sequential(*layers)

    def dataset(self, split):
        rows = {"train": self.rows, "val": 20}.get(split)
        if rows is None:
            raise KeyError(split)
        rng = np.random.default_rng(len(split))
        x = torch.tensor(rng.normal(size=(rows, 4)), dtype=torch.float32)
        return Columns(input=x, y=x.sum(1, keepdim=True))

    def loss(self, model, batch, rng):
        self.calls += 1
        if self.fail == "loss":
            raise RuntimeError("shapes do not match")
        if self.fail == "shape":
            return torch.zeros(3)
        if self.fail == "unrepeatable":
            return model(batch["input"]).mean() * self.calls
        loss = torch.nn.functional.mse_loss(model(batch["input"]), batch["y"])
        return loss * float("nan") if self.fail == "nan" and self.calls > self.bad_step else loss

    def metrics(self, outputs, batch):
        return {"error": (outputs - batch["y"]).abs().mean().item()}

    def optimizer(self, params):
        return torch.optim.AdamW(params, lr=1e-2)

    def example_inputs(self):
        return {"input": torch.zeros(2, 4)}


def toy_spec(**changes) -> RunSpec:
    fields = {"run": "toy", "recipe": "toy:Toy", "workers": "1..4", "batch": 24, "steps": 12}
    return RunSpec.model_validate({**fields, **changes})
