"""What `sundog init` writes: a recipe, its run spec and a deployment that work as they are."""

from __future__ import annotations

from pathlib import Path

from sundog.errors import AlreadyExists, SundogError

RECIPE = '''"""A recipe: what to train. Sundog owns the loop, the order of samples and the randomness."""

import torch
from torch import nn

from sundog import Columns, Recipe


class Curve(Recipe):
    """Learns y = sin(x) from noisy points. Replace it with your own."""

    def __init__(self, data=None, *, lr=1e-2, hidden=32):
        super().__init__(data)
        self.lr, self.hidden = lr, hidden

    def model(self):
        class Net(nn.Module):
            def __init__(self, hidden):
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1))

            def forward(self, x):
                return {"y": self.layers(x)}

        return Net(self.hidden)

    def dataset(self, split):
        seeds = {"train": 0, "val": 1, "test": 2}
        generator = torch.Generator().manual_seed(seeds[split])
        x = torch.rand(2000 if split == "train" else 200, 1, generator=generator) * 6 - 3
        y = torch.sin(x) + 0.05 * torch.randn(x.shape, generator=generator)
        return Columns(x=x, target=y)

    def loss(self, model, batch, rng):
        return nn.functional.mse_loss(model(x=batch["x"])["y"], batch["target"])

    def metrics(self, outputs, batch):
        return {"mae": (outputs["y"] - batch["target"]).abs().mean().item()}

    def optimizer(self, params):
        return torch.optim.Adam(params, lr=self.lr)

    def example_inputs(self):
        return {"x": torch.zeros(2, 1)}
'''

RUN = """# sundog train run.yaml
# or: ray job submit --working-dir . -- python -m sundog train run.yaml
run: curve
recipe: recipe:Curve            # module:Name, as imported from this folder
workers: 1..2                   # grows and shrinks in between
batch: 64                       # global, whatever the number of workers
steps: 600
checkpoint: {every: 200 steps, keep: 2}
params: {lr: 0.01, hidden: 32}  # what the recipe is built with
register: {as: curve, alias: champion}
"""

SERVICE = """# sundog deploy service.yaml     (or: serve deploy service.yaml)
proxy_location: Disabled        # the gateway owns its address
applications:
  - name: curve
    import_path: sundog:service
    route_prefix: null
    args:
      service: curve
      model: curve@champion
      replicas: 1
"""

README = """# curve

    sundog train run.yaml
    sundog deploy service.yaml
    curl -s $SUNDOG_GATEWAY/v2/models/curve/infer -d '{"inputs":
      [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}]}'
"""

FILES = {"recipe.py": RECIPE, "run.yaml": RUN, "service.yaml": SERVICE, "README.md": README}


def write(folder: Path) -> list[Path]:
    """Write the files; refuses to touch one that is there."""
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise AlreadyExists(
            f"{folder}: {', '.join(there)} already there, left as they are",
            "choose an empty folder: sundog init my-model",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise SundogError(
            f"{folder} cannot be written: {error.strerror}", "name a folder of your own"
        ) from None
    return [folder / name for name in FILES]
