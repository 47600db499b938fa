"""Measuring a model on a split: the same numbers at any number of workers.

Adds up fixed chunks in their order, each with randomness of its own; trains nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sundog.errors import RecipeError
from sundog.runs.exchange import Exchange
from sundog.runs.recipe import blamed, fetch, forward
from sundog.runs.sampler import mix, share

_CHUNK_ROWS = 256


def evaluate(
    recipe: Any, model: torch.nn.Module, data: Any, exchange: Exchange, device: torch.device,
    together: bool = False, key: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Means over all rows of `data` of the loss and of what `recipe.metrics` reports.

    The rows are cut into chunks that do not depend on the number of workers, and the chunks' sums
    are added in their order, in float64: so the result does not depend on it either. `together`:
    a forward pass needs all workers, so who has fewer chunks measures one again. `key` seeds what the
    recipe draws, chunk by chunk.
    """
    model.eval()
    chunks = -(-len(data) // _CHUNK_ROWS)
    mine: dict[int, tuple[int, dict[str, float]]] = {}
    fault: RecipeError | None = None
    try:
        with torch.no_grad():
            own = range(*share(chunks, exchange.world, exchange.rank))
            for chunk in own:
                mine[chunk] = _measure(recipe, model, data, chunk, device, key)
            most = -(-chunks // exchange.world)
            for _ in range(most - len(own) if together else 0):
                _measure(recipe, model, data, 0, device, key)
    except RecipeError as error:
        fault = error  # everybody must still take part in the gathering
    gathered = exchange.gather((mine, fault))
    for _, theirs in gathered:
        if theirs is not None:
            raise theirs
    merged = {chunk: value for part, _ in gathered for chunk, value in part.items()}
    totals: dict[str, float] = {}
    for chunk in range(chunks):
        rows, values = merged[chunk]
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + rows * value
    return {name: total / len(data) for name, total in totals.items()}


def _measure(
    recipe: Any, model: torch.nn.Module, data: Any, chunk: int, device: torch.device, key: int
) -> tuple[int, dict[str, float]]:
    from sundog.runs.replica import seeded, to_device

    seeded(mix(key, chunk), device)
    rows = np.arange(chunk * _CHUNK_ROWS, min(len(data), (chunk + 1) * _CHUNK_ROWS))
    with blamed("recipe: reading the validation rows"):
        batch = to_device(fetch(data, rows), device)
    rng = torch.Generator(device).manual_seed(chunk)
    with blamed("recipe: loss() in evaluation"):
        values = {"loss": float(recipe.loss(model, batch, rng))}
    with blamed("recipe: metrics()"):
        own = getattr(recipe, "outputs", None)
        outputs = own(model, batch) if own else forward(recipe, model, batch)
        found = recipe.metrics(outputs, batch) if hasattr(recipe, "metrics") else {}
        values |= {str(name): float(value) for name, value in found.items()}
    return len(rows), values
