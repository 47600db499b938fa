"""A model whose parameters, gradients and optimizer state are spread over the workers (FSDP2).

The same duties as `replica.py`, in another layout: every worker holds a shard, so all of them take
part in every forward pass, and a lost worker takes its shard along. Sums follow the shards' order:
near a single process, not the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from sundog.errors import RecipeError, RunError
from sundog.runs.exchange import PeerLost
from sundog.runs.recipe import blamed
from sundog.runs.replica import (
    Replica,
    blocks_of,
    check_parameters,
    diverged,
    first_model,
    other_model,
    recompute_blocks,
)
from sundog.runs.sampler import share

if TYPE_CHECKING:
    from sundog.runs.ledger import Plan
    from sundog.spec.run import RunSpec


class Sharded(Replica):
    """One worker's shard. There is a model only after `seat`: it is cut for that group's size."""

    collective = True

    def __init__(
        self, spec: RunSpec, recipe: Any, plan: Plan, train: Any, device: torch.device, steps: int
    ) -> None:
        self.spec, self.recipe, self.plan, self.train = spec, recipe, plan, train
        self.device, self.samples = device, steps * plan.batch
        self.scaler = None
        self.slots = [torch.zeros(1, device=device)]  # only the loss travels beside the shards

    def seat(self, world: int, rank: int) -> None:
        """Build the model with the run's first weights and keep this place's shard of it."""
        self._seat = world, rank
        self.model = first_model(self.spec, self.recipe).to(self.device)
        if self.spec.recompute:
            recompute_blocks(self.model)
        if world > 1:
            self._shard(world)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        check_parameters(self.params)
        with blamed("recipe: optimizer()"):
            self.optimizer = self.recipe.optimizer(iter(self.params))
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        if self.spec.compile:
            self.model.compile()

    def _shard(self, world: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (world,))
        for block in blocks_of(self.model):
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    def compute(self, step: int, indices: Any, first_row: int) -> None:
        """Loss and gradient of this worker's micro-batches. Everybody runs as many of them: who has
        fewer computes one again, without weight."""
        world, rank = self._seat
        count, size = self.plan.count, self.plan.batch // self.plan.count
        start, stop = share(count, world, rank)
        most = max(b - a for a, b in (share(count, world, r) for r in range(world)))
        self.slots[0].zero_()
        self.optimizer.zero_grad(set_to_none=True)
        for turn in range(most):
            micro = min(start + turn, stop - 1) if stop > start else 0
            real = start + turn < stop
            at = micro * size - first_row
            rows = indices[at : at + size] if stop > start else None
            try:
                loss = self.loss(step, micro, rows)
                # FSDP divides what it adds up by the number of workers.
                weight = world / count if real else 0.0
                with blamed("recipe: backward of loss()"):
                    (loss * weight).backward()  # type: ignore[no-untyped-call]
            except RecipeError as error:
                if world > 1 and _is_a_lost_peer(error.__cause__):
                    raise PeerLost(f"a worker stopped answering: {error.__cause__}") from error
                raise
            if real:
                self.slots[0] += loss.detach()

    def apply(self, step: int, total: torch.Tensor) -> None:
        """One step of the optimizer on this worker's shard. RunError when the gradient is not finite."""
        if self.spec.clip:
            norm = torch.nn.utils.clip_grad_norm_(self.params, self.spec.clip)
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            if not bool(torch.isfinite(whole)):
                raise diverged(step, f"the gradient's norm became {float(whole)}")
        self.set_rates(step)
        with blamed("recipe: the optimizer's step"):
            self.optimizer.step()

    def shards(self) -> dict[str, Any]:
        """Model and optimizer as distributed checkpoints name them: by the model's own names."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_whole(self, state: Mapping[str, Any], step: int) -> None:
        """Take this place's part of a replica's state. RunError when it is another model's."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        whole = first_model(self.spec, self.recipe)
        optimizer = self.recipe.optimizer(p for p in whole.parameters() if p.requires_grad)
        try:
            whole.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise other_model(step, error) from None
        # By the parameters' names: a replica's optimizer knows them by number.
        model, named = get_state_dict(whole, optimizer)
        options = StateDictOptions(full_state_dict=True)
        self.load_named({"model": model, "optimizer": named}, step, options)

    def state(self) -> dict[str, Any]:
        raise RunError("a shard is not the state of a run", "save a distributed checkpoint")


def _is_a_lost_peer(error: BaseException | None) -> bool:
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "Connection closed" in text or "Connection reset" in text or "gloo" in text
    )
