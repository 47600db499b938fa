"""How the workers of a run swap gradients and small facts, and how they notice that one is gone.

Moves tensors over a torch process group, or over nothing when a worker is alone. Decides nothing.
"""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from sundog.errors import RunError, first_line
from sundog.rayapi.links import SMALL_BYTES, bus_gbyte_s, median_s
from sundog.runs.reduction import Node, add_up, partials
from sundog.runs.sampler import share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEADER = 2
"""int64 numbers that ride along with every gradient: what was consumed, and a flag."""
_DIGITS = 4 * HEADER  # of 16 bits each, which a float32 holds exactly, and so does a sum with zeros


_TURN_S = 5.0
T = TypeVar("T")

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

    def hand(self, value: Any, source: int) -> Any:
        """The value of rank `source`, however large; what the others give is not looked at."""
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

    def hand(self, value: Any, source: int) -> Any:
        return value

    def leave(self) -> None:
        return None


class Group:
    """The exchange over a torch process group (gloo or nccl).

    Exact sums: each rank adds up one slice of the gradient, from the partial sums of everybody's whole
    subtrees in the order of the tree, and then all swap their slices: twice the gradient's size
    travels, however many they are. With `exact=False` one all-reduce does it, in whatever order is
    fastest. Headers lie behind the gradient, each rank's in a place of its own, and are added with it.
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

    def hand(self, value: Any, source: int) -> Any:
        box = [value]
        try:
            dist.broadcast_object_list(box, group_src=source, group=self._group)
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise self._lost(error) from error
        return box[0]

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
        buffers = self._fill(count, slots, header)
        known: dict[Node, torch.Tensor] = {}
        for turn, nodes in enumerate(buffers.turns):
            width = buffers.slice
            sends = [width if turn < len(slots) else 0] * self.world
            takes = [0 if node is None else width for node in nodes]
            taken = buffers.taken[turn]
            dist.all_to_all_single(taken, buffers.part(turn), takes, sends, group=self._group)
            known |= zip([n for n in nodes if n], taken.view(-1, width), strict=True)
        # In place: what was received is of no use afterwards.
        own = add_up(Node(0, count), known, torch.Tensor.add_)
        dist.all_gather_single(buffers.total, own, group=self._group)
        return self._read(buffers.total, slots[0].numel())

    def _fast(
        self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        buffers = self._fill(count, slots[:1], header)
        for slot in slots[1:]:
            buffers.seats[0].add_(slot)
        dist.all_reduce(buffers.sent, group=self._group)
        return self._read(buffers.sent, slots[0].numel())

    def _fill(self, count: int, slots: Sequence[torch.Tensor], header: Sequence[int]) -> _Buffers:
        buffers = self._meet(count, slots[0])
        for seat, slot in zip(buffers.seats, slots, strict=False):
            if seat.data_ptr() != slot.data_ptr():
                seat.copy_(slot)
        tail = buffers.sent[slots[0].numel() :][: self.world * _DIGITS]
        tail.zero_()
        tail[self.rank * _DIGITS : (self.rank + 1) * _DIGITS] = torch.tensor(_digits(header))
        return buffers

    def _read(self, summed: torch.Tensor, size: int) -> tuple[torch.Tensor, list[list[int]]]:
        heads = summed[size:][: self.world * _DIGITS].view(self.world, HEADER, 4).tolist()
        return summed[:size], [[_from_digits(word) for word in head] for head in heads]

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
    slice: int = 0  # how many numbers a rank adds up for all
    turns: Sequence[Sequence[Node | None]] = ()  # whose partial sums travel in a turn, by rank
    taken: Sequence[torch.Tensor] = ()  # by turn: this rank's slice of each of them
    total: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def in_order(cls, key: tuple[Any, ...], world: int, rank: int, like: torch.Tensor) -> _Buffers:
        count, size = key[0], like.numel()
        nodes = [partials(count, *share(count, world, r)) for r in range(world)]
        turns = list(zip_longest(*nodes))
        width = -(-(size + world * _DIGITS) // world)
        sent = like.new_zeros(len(nodes[rank]), world * width)
        taken = [like.new_zeros(width * sum(n is not None for n in turn)) for turn in turns]
        seats = [part[:size] for part in sent]
        return cls(key, sent.view(-1), seats, width, turns, taken, like.new_zeros(world * width))

    @classmethod
    def fast(cls, key: tuple[Any, ...], world: int, rank: int, like: torch.Tensor) -> _Buffers:
        sent = like.new_zeros(like.numel() + world * _DIGITS)
        return cls(key, sent, [sent[: like.numel()]])

    def part(self, turn: int) -> torch.Tensor:
        """What is sent in a turn: a partial sum, one slice for each rank; nothing without one left."""
        size = self.total.numel()
        return self.sent[turn * size : (turn + 1) * size]


def _digits(header: Sequence[int]) -> list[float]:
    return [float(word >> bits & 0xFFFF) for word in header for bits in (0, 16, 32, 48)]


def _from_digits(digits: list[float]) -> int:
    word = sum(int(digit) << 16 * i for i, digit in enumerate(digits))
    return word - (1 << 64) if word >> 63 else word


def in_turns(exchange: Exchange, work: Callable[[], T]) -> list[T]:
    """What `work` gives on every rank, however long one of them takes: those that are done wait in short
    turns, so that nobody calls a slow one lost. `work` must not use the exchange. Raises what it raises
    anywhere."""
    with ThreadPoolExecutor(1, "in-turns") as beside:
        doing = beside.submit(work)
        while exchange.world > 1:
            wait([doing], _TURN_S)
            if all(exchange.gather(doing.done())):
                break
    fault = doing.exception()
    for theirs in exchange.gather(fault):
        if theirs is not None:
            raise theirs
    return exchange.gather(doing.result())


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
