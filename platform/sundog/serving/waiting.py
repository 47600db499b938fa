"""The calls that wait in a lane: those that go first, those that may wait, and what both hold in memory.

Bounded by number and by bytes. Decides nothing about replicas.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from sundog.serving.contract import Parsed
from sundog.serving.streams import Outputs

MAX_BYTES = 256 * 2**20
"""Of all that wait for one version; a single one may be larger, as the spec's max_body says."""


@dataclass(slots=True, eq=False)
class Call:
    parsed: Parsed
    future: asyncio.Future[Outputs]
    queued_s: float
    deadline_s: float
    size: int = 0
    """bytes of its tensors"""
    attempts: int = 0
    alone: bool = False


class Waiting:
    """`first` goes before `later`, each in the order in which it came."""

    __slots__ = ("bytes", "first", "later")

    def __init__(self) -> None:
        self.first: deque[Call] = deque()
        self.later: deque[Call] = deque()
        """Calls of batch priority."""
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.first) + len(self.later)

    def full(self, most: int, size: int) -> str | None:
        """Why there is no room for a call of so many bytes; None where there is."""
        waiting = len(self.first) + len(self.later)
        if waiting >= most:
            return f"{most} requests wait already"
        if waiting and self.bytes + size > MAX_BYTES:
            return f"requests of {self.bytes >> 20} MiB wait already"
        return None

    def add(self, call: Call, later: bool) -> None:
        (self.later if later else self.first).append(call)
        self.bytes += call.size

    def again(self, call: Call) -> None:
        """It was sent, and has to be once more: before all others."""
        self.first.appendleft(call)
        self.bytes += call.size

    def pop(self, queue: deque[Call]) -> Call:
        """The oldest of one of the two."""
        call = queue.popleft()
        self.bytes -= call.size
        return call

    def give_way(self) -> Call | None:
        """The newest of those that may wait, which leaves; None where there is none."""
        if not self.later:
            return None
        call = self.later.pop()
        self.bytes -= call.size
        return call

    def clear(self) -> list[Call]:
        """All of them, which leave."""
        calls = [*self.first, *self.later]
        self.first.clear()
        self.later.clear()
        self.bytes = 0
        return calls
