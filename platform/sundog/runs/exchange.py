"""How the workers of a run swap gradients and small facts, and how they notice that one is gone.

Moves tensors over a torch process group, or over nothing when a worker is alone. Decides nothing.
"""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from sundog.errors import RunError
from sundog.runs.reduction import Node, add_up, partials
from sundog.runs.sampler import share

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = 2
"""int64 numbers that ride along with every gradient: what was consumed, and a flag."""


class PeerLost(RunError):
    """A worker of the group stopped answering; the survivors still hold their state."""


class Exchange(Protocol):
    rank: int
    world: int

    def sum(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """The sum over all `count` micro-batches in the order of the fixed tree, and every rank's
        header. `slots` are this rank's partial sums, one for each of its `partials`."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's small value, by rank."""
        ...

    def spread(self, tensors: list[torch.Tensor], source: int) -> None:
        """Overwrite `tensors` with those of rank `source`, bit for bit."""
        ...

    def leave(self) -> None:
        """Close the connections; the exchange is of no use afterwards."""
        ...


class Alone:
    """The exchange of a run with one worker."""

    rank = 0
    world = 1

    def sum(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        return slots[0], [list(header)]

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def spread(self, tensors: list[torch.Tensor], source: int) -> None:
        return None

    def leave(self) -> None:
        return None


class Group:
    """The exchange over a torch process group (gloo or nccl).

    Exact sums: each rank sends the partial sums of its whole subtrees, so that everybody adds them
    in the same order. With `exact=False` one all-reduce does it, in whatever order is fastest.
    """

    def __init__(self, group: Any = None, exact: bool = True) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.world = dist.get_world_size(group)
        self._exact = exact
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}

    def sum(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        try:
            return (self._in_order if self._exact else self._fast)(count, slots, header)
        except RuntimeError as error:
            raise self._lost(error) from error

    def gather(self, value: Any) -> list[Any]:
        out: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(out, value, group=self._group)
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise self._lost(error) from error
        return out

    def spread(self, tensors: list[torch.Tensor], source: int) -> None:
        try:
            for tensor in tensors:
                dist.broadcast(tensor, group_src=source, group=self._group)
        except RuntimeError as error:
            raise self._lost(error) from error

    def leave(self) -> None:
        """Close the connections: whoever still waits for us hears of it at once."""
        self._buffers.clear()
        if dist.is_initialized():
            dist.destroy_process_group(self._group)

    def _lost(self, error: BaseException) -> PeerLost:
        # A ring only tells a dead worker's neighbours. Closing our own side tells ours, and so on:
        # else the others would wait for the timeout.
        self.leave()
        return PeerLost(f"a worker stopped answering: {_first_line(error)}")

    def _in_order(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        nodes = [partials(count, *share(count, self.world, rank)) for rank in range(self.world)]
        most, size = max(len(n) for n in nodes), slots[0].numel()
        rows = self._buffer(most * size + 2 * HEADER, slots[0])
        mine = rows[self.rank]
        for i, slot in enumerate(slots):
            mine[i * size : (i + 1) * size] = slot
        self._write_header(mine[most * size :], header)
        dist.all_gather(list(rows.unbind(0)), mine.clone(), group=self._group)
        known = {
            node: rows[rank, i * size : (i + 1) * size]
            for rank in range(self.world)
            for i, node in enumerate(nodes[rank])
        }
        total = add_up(Node(0, count), known, torch.add)
        headers = rows[:, most * size :].cpu().contiguous().view(torch.int64)
        return total, headers.tolist()

    def _fast(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        total = slots[0].clone()
        for slot in slots[1:]:
            total += slot
        heads = torch.zeros(self.world, HEADER, dtype=torch.int64, device=total.device)
        mine = torch.tensor(list(header), dtype=torch.int64, device=total.device)
        small = dist.all_gather(list(heads.unbind(0)), mine, group=self._group, async_op=True)
        dist.all_reduce(total, group=self._group)
        small.wait()
        return total, heads.tolist()

    def _buffer(self, width: int, like: torch.Tensor) -> torch.Tensor:
        key = (self.world, width)
        if key not in self._buffers:
            # An even width keeps the header aligned for its 8-byte view.
            self._buffers = {key: like.new_zeros(self.world, width)}
        return self._buffers[key]

    @staticmethod
    def _write_header(tail: torch.Tensor, header: Sequence[int]) -> None:
        words = torch.tensor(list(header), dtype=torch.int64).view(torch.float32)
        tail.copy_(words)


def connect(
    store: Any, rank: int, world: int, *, backend: str, exact: bool, timeout_s: float
) -> Exchange:
    """The exchange of a new group whose members meet at `store`."""
    if world == 1:
        return Alone()
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s)
    )
    return Group(exact=exact)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
