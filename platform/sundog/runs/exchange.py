"""How the workers of a run swap gradients and small facts, and how they notice that one is gone.

Moves tensors over a torch process group, or over nothing when a worker is alone. Decides nothing.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from sundog.errors import RunError, first_line
from sundog.rayapi.links import SMALL_BYTES, bus_gbyte_s, median_s
from sundog.runs.reduction import Node, add_up, partials
from sundog.runs.sampler import share

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = 2
"""int64 numbers that ride along with every gradient: what was consumed, and a flag."""
_DIGITS = 4 * HEADER  # of 16 bits each, which a float32 holds exactly


PROBE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Links:
    """What swapping gradients takes here: `gbyte_s` as `bus_gbyte_s` of the slowest member, `latency_ms`
    of a tiny all-reduce."""

    gbyte_s: float
    latency_ms: float


class PeerLost(RunError):
    """A worker of the group stopped answering; the survivors still hold their state."""


class Exchange(Protocol):
    rank: int
    world: int

    def seats(self, count: int, slots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Slots like these, one for each of this rank's `partials`, from which `sum` sends without
        a copy. Their content is lost with every `sum`."""
        ...

    def sum(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """The sum over all `count` micro-batches in the order of the fixed tree, and every rank's
        header. `slots` are this rank's partial sums; the sum is good until the next call."""
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

    def seats(self, count: int, slots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(slots)

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
        self._buffers: _Buffers | None = None

    def seats(self, count: int, slots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        own = self._meet(count, slots[0]).seats
        return [*own[: len(slots)], *slots[len(own) :]]

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

    def probe(self, device: str) -> Links:
        """Measure it, on tensors of `device`. PeerLost."""
        try:
            large, tiny = (
                median_s(size, device, self._group) for size in (PROBE_BYTES, SMALL_BYTES)
            )
        except RuntimeError as error:
            raise self._lost(error) from error
        slowest, late = (max(times) for times in zip(*self.gather((large, tiny)), strict=True))
        gbyte_s = bus_gbyte_s(self.world, PROBE_BYTES, slowest)
        return Links(round(gbyte_s, 3), round(1000 * late, 3))

    def leave(self) -> None:
        """Close the connections: whoever still waits for us hears of it at once."""
        self._buffers = None
        if dist.is_initialized():
            dist.destroy_process_group(self._group)

    def _lost(self, error: BaseException) -> PeerLost:
        # A ring only tells a dead worker's neighbours. Closing our own side tells ours, and so on:
        # else the others would wait for the timeout.
        self.leave()
        return PeerLost(f"a worker stopped answering: {first_line(error)}")

    def _in_order(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        size = slots[0].numel()
        buffers = self._meet(count, slots[0])
        for seat, slot in zip(buffers.seats, slots, strict=False):
            if seat.data_ptr() != slot.data_ptr():
                seat.copy_(slot)
        words = torch.tensor(list(header), dtype=torch.int64).view(torch.float32)
        buffers.sent[-words.numel() :].copy_(words)
        rows = buffers.rows
        dist.all_gather_single(rows.view(-1), buffers.sent, group=self._group)
        known = {
            node: rows[rank, i * size : (i + 1) * size]
            for rank in range(self.world)
            for i, node in enumerate(buffers.nodes[rank])
        }
        # In place: what was received is of no use afterwards.
        total = add_up(Node(0, count), known, torch.Tensor.add_)
        headers = rows[:, -words.numel() :].cpu().contiguous().view(torch.int64)
        return total, headers.tolist()

    def _fast(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        buffers = self._meet(count, slots[0])
        seat, tail = buffers.seats[0], buffers.sent[slots[0].numel() :]
        if seat.data_ptr() != slots[0].data_ptr():
            seat.copy_(slots[0])
        for slot in slots[1:]:
            seat += slot
        # The headers are summed too, each rank's in a place of its own: one message less a step.
        tail.zero_()
        tail[self.rank * _DIGITS : (self.rank + 1) * _DIGITS] = torch.tensor(_digits(header))
        dist.all_reduce(buffers.sent, group=self._group)
        heads = tail.view(self.world, HEADER, 4).tolist()
        return seat, [[_from_digits(word) for word in head] for head in heads]

    def _meet(self, count: int, like: torch.Tensor) -> _Buffers:
        key = (count, like.numel(), like.device)
        if self._buffers is None or self._buffers.key != key:
            make = _Buffers.in_order if self._exact else _Buffers.fast
            self._buffers = make(key, self.world, self.rank, like)
        return self._buffers


@dataclass(frozen=True)
class _Buffers:
    """What a group sends from and receives into, at every step again."""

    key: tuple[Any, ...]
    sent: torch.Tensor
    seats: list[torch.Tensor]  # views of `sent`
    nodes: list[list[Node]]  # by rank: what its seats sum up
    rows: torch.Tensor  # by rank: what it sent

    @classmethod
    def in_order(cls, key: tuple[Any, ...], world: int, rank: int, like: torch.Tensor) -> _Buffers:
        count, size = key[0], like.numel()
        nodes = [partials(count, *share(count, world, r)) for r in range(world)]
        most = max(len(n) for n in nodes)
        sent = like.new_zeros(most * size + 2 * HEADER)
        seats = [sent[i * size : (i + 1) * size] for i in range(len(nodes[rank]))]
        return cls(key, sent, seats, nodes, like.new_zeros(world, sent.numel()))

    @classmethod
    def fast(cls, key: tuple[Any, ...], world: int, rank: int, like: torch.Tensor) -> _Buffers:
        sent = like.new_zeros(like.numel() + world * _DIGITS)
        return cls(key, sent, [sent[: like.numel()]], [], sent[:0])


def _digits(header: Sequence[int]) -> list[float]:
    return [float(word >> bits & 0xFFFF) for word in header for bits in (0, 16, 32, 48)]


def _from_digits(digits: list[float]) -> int:
    word = sum(int(digit) << 16 * i for i, digit in enumerate(digits))
    return word - (1 << 64) if word >> 63 else word


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
