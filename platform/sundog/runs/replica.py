"""A whole copy of the model in one process: losses and gradients of micro-batches, one step of the
optimizer, and the state as plain values.

Owns the arithmetic and its randomness. Which rows a step has, who else holds a copy and when to save
are the loop's.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sundog.errors import Diverged, RecipeError, RunError, first_line
from sundog.runs.recipe import blamed, fetch
from sundog.runs.reduction import Node, partials
from sundog.runs.sampler import mix, share
from sundog.runs.schedule import factor

if TYPE_CHECKING:
    from sundog.runs.ledger import Plan
    from sundog.spec.run import RunSpec

_GOOD_STEPS, _SMALLEST_SCALE = 2000, 2.0**-14
_INIT = -1  # the pseudo-step that keys the randomness of the first weights


class Replica:
    """Model, optimizer and gradients; `slots` are this worker's partial sums, loss in the last place."""

    collective = False  # every worker could go on alone

    def __init__(
        self, spec: RunSpec, recipe: Any, plan: Plan, train: Any, device: torch.device, steps: int
    ) -> None:
        self.spec, self.recipe, self.plan, self.train = spec, recipe, plan, train
        self.device, self.samples = device, steps * plan.batch
        self.slots: list[torch.Tensor] = []
        self._spare: dict[int, torch.Tensor] = {}
        self.model = first_model(spec, recipe).to(device)
        if spec.exact:
            refuse_inexact(self.model)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        check_parameters(self.params)
        with blamed("recipe: optimizer()"):
            self.optimizer = recipe.optimizer(iter(self.params))
        # Before any state is loaded: that brings the rates of the moment.
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = Scaler() if spec.precision == "fp16" else None
        if spec.recompute:
            recompute_blocks(self.model)
        if spec.compile:
            self.model.compile()
        self._views: dict[int, list[torch.Tensor]] = {}

    def seat(self, world: int, rank: int) -> None:
        """Take place `rank` in a group of `world`: room for that place's partial sums."""
        own = len(partials(self.plan.count, *share(self.plan.count, world, rank)))
        width = sum(p.numel() for p in self.params) + 1  # the loss is summed with the gradient
        self.slots = [torch.zeros(width, device=self.device) for _ in range(own)]
        self._views = {}  # of the slots before
        self._seat = world, rank

    def _views_of(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The parameters' places in a flat gradient, which is what is summed and sent."""
        views = self._views.get(flat.data_ptr())
        if views is None:
            ends = itertools.accumulate(p.numel() for p in self.params)
            views = [
                flat[end - p.numel() : end].view_as(p)
                for p, end in zip(self.params, ends, strict=True)
            ]
            self._views[flat.data_ptr()] = views
        return views

    def compute(self, step: int, indices: Any, first_row: int) -> None:
        """This worker's partial sums, each a whole subtree of the tree over micro-batches.

        `indices` are its rows of the step's batch, the first of which is row `first_row` of it.
        """
        size = self.plan.batch // self.plan.count
        start, stop = share(self.plan.count, *self._seat)
        rows = {
            m: indices[m * size - first_row : (m + 1) * size - first_row]
            for m in range(start, stop)
        }
        nodes = partials(self.plan.count, start, stop)
        for slot, node in zip(self.slots, nodes, strict=True):
            self.subtree(step, node, slot, rows)

    def subtree(
        self, step: int, node: Node, out: torch.Tensor, rows: Mapping[int, Any], depth: int = 0
    ) -> None:
        """Sum gradient and loss of the micro-batches under `node` into `out`, in the tree's order."""
        if node.leaf:
            for p in self.params:
                p.grad = None  # autograd then leaves its own there, where it would add to ours
            loss = self.loss(step, node.start, rows.get(node.start))
            # The sum over all micro-batches is then the mean: nothing is divided afterwards.
            scaled = loss * ((self.scaler.scale if self.scaler else 1.0) / self.plan.count)
            with blamed("recipe: backward of loss()"):
                scaled.backward()  # type: ignore[no-untyped-call]
            for p, view in zip(self.params, self._views_of(out), strict=True):
                _put(p.grad, view)
            out[-1] = loss.detach()
            return
        left, right = node.children()
        if depth not in self._spare:
            self._spare[depth] = torch.zeros_like(out)
        self.subtree(step, left, out, rows, depth + 1)
        self.subtree(step, right, self._spare[depth], rows, depth + 1)
        out += self._spare[depth]

    def rehearse(self) -> None:
        """Compute one micro-batch and forget it: what is loaded or compiled for the first one is there
        before a group waits for it."""
        buffers = [b.clone() for b in self.model.buffers()]
        with blamed("recipe: backward of loss()"):
            self.loss(0, 0).backward()  # type: ignore[no-untyped-call]
        for p in self.params:
            p.grad = None
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def check_repeatable(self) -> None:
        """RecipeError where one micro-batch, computed twice, gives two losses or leaves a trace."""
        before = {name: b.clone() for name, b in self.model.named_buffers()}
        values = {float(self.loss(0, 0, mode=torch.no_grad())) for _ in range(2)}
        if len(values) > 1 and not any(math.isnan(v) for v in values):
            raise RecipeError(
                "the recipe's loss differs between two calls with the same batch and randomness",
                "draw randomness from torch, numpy, random or the rng argument, or set exact: false",
            )
        for name, buffer in self.model.named_buffers():
            if not torch.equal(buffer, before[name]):
                raise RecipeError(
                    f"exact mode refuses a model that writes its buffer {name} in a forward pass: what "
                    "is in it would depend on which worker saw which rows",
                    "freeze it (track_running_stats=False, say), or set exact: false",
                )

    def loss(
        self, step: int, micro: int, rows: Any = None,
        mode: AbstractContextManager[Any] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The loss of one micro-batch, with the randomness that is its own. RecipeError."""
        if rows is None:
            size = self.plan.batch // self.plan.count
            rows = self.plan.sampler.indices(step, micro * size, (micro + 1) * size)
        key = mix(self.spec.seed, step, micro)
        seeded(key, self.device)  # before rows are read: a data set may draw what it does to them
        with blamed("recipe: reading dataset('train')"):
            batch = to_device(fetch(self.train, rows), self.device)
        rng = torch.Generator(self.device).manual_seed(key ^ 1)
        with blamed("recipe: loss()"), mode or nullcontext(), autocast(self.spec, self.device):
            loss = self.recipe.loss(self.model, batch, rng)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise RecipeError(
                f"recipe: loss() returned {_shape(loss)}, not a scalar",
                "return the mean over the batch",
            )
        return loss.reshape(()).float()

    def apply(self, step: int, total: torch.Tensor) -> None:
        """One step of the optimizer with the sum over all micro-batches. Everybody has the same sum,
        so everybody clips, scales and skips alike. RunError when the gradient is not finite."""
        mean = total[:-1]
        if self.scaler:
            mean.div_(self.scaler.scale)
        if self.scaler or self.spec.clip:
            norm = float(torch.linalg.vector_norm(mean))
            if self.scaler and not self.scaler.saw(math.isfinite(norm)):
                return  # too large for half precision: the next step is scaled down
            if not math.isfinite(norm):
                raise diverged(step, f"the gradient's norm became {norm}")
            if self.spec.clip and norm > self.spec.clip:
                mean *= self.spec.clip / norm
        self.set_rates(step)
        for p, view in zip(self.params, self._views_of(total), strict=True):
            p.grad = view
        with blamed("recipe: the optimizer's step"):
            self.optimizer.step()

    def set_rates(self, step: int) -> None:
        """The learning rates of `step`, which follow the samples that were consumed before it."""
        times = factor(self.spec.schedule, step * self.plan.batch, self.samples)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * times

    def state(self) -> dict[str, Any]:
        """A copy of what a step changes, on the CPU."""
        return {
            "model": copied(self.model.state_dict()),
            "optimizer": copied(self.optimizer.state_dict()),
            **({"scaler": self.scaler.state()} if self.scaler else {}),
        }

    def shards(self) -> dict[str, Any]:
        """This worker's part of the state, for a distributed checkpoint; a replica has no parts."""
        raise RunError("a replica has no shards", "save its state")

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. RunError when it is another model's."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler and "scaler" in state:
                self.scaler.load(state["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise other_model(state.get("step"), error) from None

    def load_named(self, state: Mapping[str, Any], step: int, options: Any = None) -> None:
        """Go on from a state whose optimizer knows parameters by their names, as distributed checkpoints
        do. RunError when it is another model's."""
        from torch.distributed.checkpoint.state_dict import set_state_dict

        try:
            set_state_dict(
                self.model, self.optimizer, model_state_dict=state["model"],
                optim_state_dict=state["optimizer"], options=options,
            )  # fmt: skip
        except (RuntimeError, ValueError, KeyError) as error:
            raise other_model(step, error) from None


def _put(grad: torch.Tensor | None, place: torch.Tensor) -> None:
    if grad is None:  # the loss does not depend on this parameter
        place.zero_()
    elif grad.is_sparse:
        place.zero_().add_(grad)
    else:
        place.copy_(grad)


def seeded(key: int, device: torch.device) -> None:
    """Seed what recipes draw from. `torch.manual_seed` would also look at every other kind of device,
    which takes longer than a small layer."""
    random.seed(key)
    np.random.seed(key % 2**32)
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)


class Scaler:
    """The loss scale of half precision: a power of two, so that scaling rounds nothing.

    Doubled after 2,000 good steps, halved by a bad one, which is skipped (Micikevicius et al., 2018).
    """

    def __init__(self) -> None:
        self.scale, self._good = 65536.0, 0

    def saw(self, finite: bool) -> bool:
        """Take note of a step's gradient; whether the step counts. RunError when no scale helps."""
        if not finite:
            self.scale, self._good = self.scale / 2, 0
            if self.scale < _SMALLEST_SCALE:
                raise Diverged(
                    "the gradient is not finite in half precision, whatever the loss is scaled with",
                    "use precision: bf16, lower the learning rate or clip gradients",
                )
            return False
        self._good += 1
        if self._good == _GOOD_STEPS:
            self.scale, self._good = self.scale * 2, 0
        return True

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "good": self._good}

    def load(self, state: Mapping[str, float]) -> None:
        self.scale, self._good = state["scale"], int(state["good"])


def blocks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated parts of a model: the members of its lists of layers, else of its outer sequence."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    inner = {id(m) for one in lists for child in one for m in child.modules()}
    found = [child for one in lists if id(one) not in inner for child in one]
    if not found:
        sequences = (m for m in model.modules() if isinstance(m, torch.nn.Sequential))
        found = list(next(sequences, torch.nn.Sequential()))
    return [block for block in found if any(True for _ in block.parameters())]


def recompute_blocks(model: torch.nn.Module) -> None:
    """Keep only each block's inputs; the backward pass computes the rest again, dropout included."""
    from torch.utils.checkpoint import checkpoint

    blocks = blocks_of(model)
    if not blocks:
        raise RecipeError(
            "recompute: true, but the model has no nn.ModuleList and no nn.Sequential of blocks",
            "keep its repeated layers in an nn.ModuleList, or leave recompute out",
        )
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def diverged(step: int, what: str) -> Diverged:
    return Diverged(
        f"{what} at step {step}: the run stopped with its last good checkpoint",
        "lower the learning rate or clip gradients; the same run id goes on from that checkpoint",
    )


def first_model(spec: RunSpec, recipe: Any) -> torch.nn.Module:
    """The recipe's model with the run's first weights: the same in every process."""
    seeded(mix(spec.seed, _INIT, 0), torch.device("cpu"))
    with blamed("recipe: model()"):
        model: torch.nn.Module = recipe.model()
    return model


def check_parameters(params: list[torch.nn.Parameter]) -> None:
    if not params:
        raise RecipeError("recipe: model() has no parameter that can be trained")
    if any(p.dtype != torch.float32 for p in params):
        raise RecipeError(
            "recipe: model() has parameters that are not float32",
            "keep them in float32 and set precision: bf16 in the spec for fast arithmetic",
        )


def refuse_inexact(model: torch.nn.Module) -> None:
    """RecipeError for layers whose result depends on how a batch is cut over workers."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise RecipeError(
                f"exact mode refuses {type(module).__name__} ({name}): its statistics depend on which "
                "worker saw which rows",
                "use GroupNorm or LayerNorm, or set exact: false in the spec",
            )


def other_model(step: Any, error: Exception) -> RunError:
    return RunError(
        f"the checkpoint of step {step} is of another model: {first_line(error)}",
        "start a new run (--run-id), or put the recipe back as it was",
    )


def autocast(spec: RunSpec, device: torch.device) -> AbstractContextManager[Any]:
    if spec.precision == "fp32":
        return nullcontext()
    half = torch.bfloat16 if spec.precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=half)


def to_device(batch: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def copied(value: Any) -> Any:
    """A deep copy with every tensor on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(v) for v in value)
    return value


def _shape(value: Any) -> str:
    return (
        f"a tensor of shape {list(value.shape)}"
        if isinstance(value, torch.Tensor)
        else repr(value)[:60]
    )
