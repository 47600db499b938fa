"""The largest micro-batch that fits into a worker's memory: tried once, remembered per kind of device.

Tries forward, backward and a step of the optimizer on real rows. What a run began with it keeps: the
order of additions, and so its curve, depends on it.
"""

from __future__ import annotations

import gc
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sundog.errors import AlreadyExists, Corrupt, NotFound, RecipeError, RunError
from sundog.runs.kind import device_name
from sundog.runs.recipe import blamed, fetch
from sundog.runs.replica import autocast, first_model, recompute_blocks, to_device

if TYPE_CHECKING:
    from sundog.spec.run import RunSpec
    from sundog.storage.root import Root

_FORMAT = 1
_FLAT = 4  # flat gradients that an exact run of several workers holds at most


def settle_micro_batch(
    root: Root, folder: str, spec: RunSpec, recipe: Any, device: torch.device
) -> RunSpec:
    """The spec with a number for `micro_batch: auto`, the same for every worker of the run in
    `folder`, now and when it resumes. RunError when not one row fits."""
    if spec.micro_batch != "auto":
        return spec
    pinned = f"{folder}/micro_batch.json"
    found = _read(root, pinned)
    if found is None:
        known = f"profiles/micro-batch/{device_name(device)}/{_digest(spec, recipe)}.json"
        found = _read(root, known) or largest(spec, recipe, device)
        body = json.dumps({"format": _FORMAT, "micro_batch": found}).encode()
        root.write(known, body)
        try:
            root.create(pinned, body)
        except AlreadyExists:  # another worker was first
            found = _read(root, pinned)
    return spec.model_copy(update={"micro_batch": found})


def candidates(spec: RunSpec) -> list[int]:
    """Sizes that divide the batch and leave at least one for each of the most workers, largest first."""
    most = spec.batch // (spec.workers.high or 1)
    return [m for m in range(most, 0, -1) if spec.batch % m == 0]


def largest(spec: RunSpec, recipe: Any, device: torch.device) -> int:
    """The first of `candidates` whose step does not run out of memory."""
    for rows in candidates(spec):
        try:
            _try(spec, recipe, device, rows)
        except torch.OutOfMemoryError:
            continue
        except RecipeError as error:
            # Inside the recipe's own code it comes wrapped, with the user's line.
            if not isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
            continue
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        return rows
    raise RunError(
        f"not one row of the batch fits into the memory of a {device_name(device)}",
        "ask for a larger device, set recompute: true or precision: bf16, or make the model smaller",
    )


def _try(spec: RunSpec, recipe: Any, device: torch.device, rows: int) -> None:
    model = first_model(spec, recipe).to(device)
    if spec.recompute:
        recompute_blocks(model)
    with blamed("recipe: optimizer()"):
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer = recipe.optimizer(iter(params))
    # What a run holds beside the model: partial sums, and what they are sent from and received into.
    held = [torch.empty(sum(p.numel() for p in params), device=device) for _ in range(_FLAT)]
    with blamed("recipe: dataset('train')"):
        train = recipe.dataset("train")
        batch = to_device(fetch(train, np.arange(rows) % len(train)), device)
    rng = torch.Generator(device).manual_seed(0)
    with blamed("recipe: loss()"), autocast(spec, device):
        loss = recipe.loss(model, batch, rng)
    with blamed("recipe: backward of loss()"):
        loss.backward()
    optimizer.step()
    del held


def _read(root: Root, key: str) -> int | None:
    try:
        body = json.loads(root.read(key))
        return int(body["micro_batch"])
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{key} cannot be read: {error}", "delete it: it is measured again") from None


def _digest(spec: RunSpec, recipe: Any) -> str:
    """What a size was found for. The model itself counts, since its code may change under its name."""
    shapes = [list(p.shape) for p in first_model(spec, recipe).parameters()]
    what = [
        spec.recipe, spec.params, spec.batch, spec.workers.high, spec.precision, spec.recompute,
        spec.compile, spec.layout, shapes,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
