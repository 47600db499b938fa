"""The queue of one model version: stacks what waits into frames and gives them to free replicas.

Never waits for a batch to fill: what is queued when a replica is free goes at once. It knows
connections only as things with free slots that take a frame, and keeps no request past its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from sundog.clock import WALL
from sundog.serving.admission import FirstParts, Pace, refuse_after_s
from sundog.serving.batching import BatchSize
from sundog.serving.contract import Contract, Parsed
from sundog.serving.frames import BadFrame, cut, tensor_meta, with_traces
from sundog.serving.health import Health, why_out
from sundog.serving.stats import LaneStats
from sundog.serving.streams import Outputs as Outputs
from sundog.serving.streams import PartStream
from sundog.serving.waiting import Call, Waiting

HOLD_S = 10.0
"""How long a request waits for a first replica before it is refused, where the service says nothing."""
RETRY_S = 5.0
"""When to come back if there is no replica: a new one takes about so long."""
SWEEP_S = 0.05
MAX_ATTEMPTS = 3
_FAULT_STATUS = {"input": 400, "parts": 400}

log = logging.getLogger("sundog.gateway")


class NotServed(Exception):
    """A call that got no answer: an HTTP status (500, 503 or 504), and when to try again."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Limits:
    """What the service spec allows."""

    deadline_s: float = 30.0
    hold_s: float = HOLD_S
    slo_s: float | None = None
    """What most answers should take; none: the deadline alone"""
    first_s: float | None = None
    """What the first part of an answer should take, where answers come in parts"""
    queue: int = 1000
    batch: int = 64
    idempotent: bool = True


class Connection(Protocol):
    """A way to one or more replicas."""

    free: int
    """Frames it takes now."""
    load: int
    """Rows under way."""
    health: Health | None
    """None: not one replica, and never left out."""
    turn: int
    """When it was last sent something, in frames of its lane."""

    def send(self, batch: Batch) -> None: ...

    def stream(self, parsed: Parsed) -> PartStream: ...


@dataclass(slots=True, eq=False)
class Batch:
    """Calls stacked into one frame. The connection reports back exactly once."""

    lane: Lane
    calls: list[Call]
    rows: int
    sent_s: float = 0.0
    connection: Connection | None = None
    done: bool = False
    meta: Any = None
    body: list[bytes | memoryview] = field(default_factory=list)

    def answered(self, meta: Any, body: memoryview) -> None:
        if not self.done:
            self.done = True
            self.lane.answered(self, meta, body)

    def failed(self, kind: str, message: str) -> None:
        if not self.done:
            self.done = True
            self.lane.failed(self, kind, message)

    def lost(self) -> None:
        if not self.done:
            self.done = True
            self.lane.lost(self)


class Lane:
    def __init__(
        self, contract: Contract, limits: Limits, now: Callable[[], float] = WALL.monotonic_s
    ) -> None:
        self.contract = contract
        self.limits = limits
        self.calls = Waiting()
        self.connections: list[Connection] = []
        self.waiting_message = "no replica is ready"
        self.under_way = 0
        self.streams = False
        """Whether the model says that it answers in parts."""
        self.firsts = FirstParts()
        self.later_streams = 0
        """Answers in parts, of batch priority, that have not begun"""
        self.turns = asyncio.Lock()
        """Held by the one of them that is next"""
        self.stats = LaneStats()
        self.pace = Pace()
        self.size = BatchSize(limits.batch, _bound_s(limits))
        self.now = now
        self.left_out = 0
        """Replicas that are left out, or were a moment ago"""
        self._turns = 0
        self._pumping = False
        self._loop = asyncio.get_event_loop()

    def follow(self, limits: Limits) -> None:
        """The spec allows something else now."""
        self.limits = limits
        self.size.limit(limits.batch, _bound_s(limits))

    @property
    def waiting(self) -> int:
        return len(self.calls)

    def call(self, parsed: Parsed, later: bool = False) -> asyncio.Future[Outputs]:
        """Queue a request, behind all others if `later`. Raises NotServed at once when the queue is
        full or too long to be answered in time."""
        self.stats.arrivals += 1
        calls, limits = self.calls, self.limits
        ahead = len(calls) if later else len(calls.first)
        if ahead:
            self._admit(ahead, later)
        size = sum(map(len, parsed.raw))
        while (full := calls.full(limits.queue, size)) is not None:
            other = None if later else calls.give_way()
            if other is None:
                self.stats.fail_count += 1
                raise NotServed(503, full, 1.0)
            self._refuse([other], NotServed(503, "requests of higher priority fill the queue", 1.0))
        now = self.now()
        call = Call(parsed, self._loop.create_future(), now, now + limits.deadline_s, size)
        calls.add(call, later)
        self.pace.queued(now)
        self.wake()
        return call.future

    def _admit(self, ahead: int, later: bool) -> None:
        limits = self.limits
        # The estimate is a mean: half of what is promised leaves room for its spread.
        bound_s = limits.deadline_s if later else (limits.slo_s or limits.deadline_s)
        after_s = refuse_after_s(self.pace, ahead, len(self.connections), bound_s / 2)
        if after_s is not None:
            self.stats.fail_count += 1
            raise NotServed(503, "more requests than can be answered in time", after_s)

    def wake(self) -> None:
        """Something changed: a call, a free slot, a new replica."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    # -- sending

    def _pump(self) -> None:
        self._pumping = False
        while self.calls:
            free = [c for c in self.good() if c.free > 0]
            if not free:
                return
            queue = self.calls.first or self.calls.later
            share = -(-len(queue) // len(free))
            batch = self._take(queue, max(1, min(self.size.now, share)))
            if batch is None:
                continue  # whoever was in this queue has left
            batch.sent_s = self.now()
            self.under_way += len(batch.calls)
            batch.connection = self.choose(free)
            batch.connection.send(batch)

    def choose(self, some: list[Connection]) -> Connection:
        """The least loaded, of these the one whose turn is longest ago; now it was its turn."""
        chosen = min(some, key=_preference)
        self._turns += 1
        chosen.turn = self._turns
        return chosen

    def good(self) -> list[Connection]:
        """All but those that are left out, which wait while another is there, even if that is busy."""
        if not self.left_out:
            return self.connections
        now_s = self.now()
        good = [c for c in self.connections if c.health is None or not c.health.out(now_s)]
        self.left_out = len(self.connections) - len(good)
        return good or self.connections

    def _judge(self, connection: Connection | None) -> None:
        """Leave this one out for a while, if it is much worse than the others."""
        if connection is None or connection.health is None:
            return
        others = [c.health for c in self.connections if c.health and c is not connection]
        now_s = self.now()
        why = why_out(connection.health, others, now_s)
        if why is not None:
            pause_s = connection.health.leave_out(now_s)
            self.left_out += 1
            log.warning(
                "a replica of %s, version %s, is left out for %g s: %s",
                self.contract.service, self.contract.version, pause_s, why,
            )  # fmt: skip

    def _take(self, queue: deque[Call], most: int) -> Batch | None:
        """The next calls that can share a frame, oldest first; rows of one call stay together.

        Those that must not be asked twice share none: what went wrong with one would be asked again.
        """
        stackable = self.contract.batchable and self.limits.idempotent
        calls: list[Call] = []
        rows = 0
        key: Any = None
        while queue and len(calls) < most:
            call = queue[0]
            if call.future.done():  # the client went away, or the deadline passed
                self.calls.pop(queue)
                continue
            parsed = call.parsed
            single = call.alone or parsed.key is None or not stackable
            if calls and (single or parsed.key != key or rows + parsed.rows > self.size.now):
                break
            self.calls.pop(queue)
            calls.append(call)
            rows += parsed.rows
            key = parsed.key
            if single:
                break
        return self._stack(calls, rows) if calls else None

    def _stack(self, calls: list[Call], rows: int) -> Batch:
        batch = Batch(self, calls, rows)
        first = calls[0].parsed
        tensors = []
        for i, tensor in enumerate(self.contract.inputs):
            parts = [c.parsed.raw[i] for c in calls]
            shape = first.shapes[i] if len(calls) == 1 else (rows, *first.shapes[i][1:])
            tensors.append((tensor.datatype, shape, sum(map(len, parts))))
            batch.body += parts
        traces = [c.parsed.trace for c in calls if c.parsed.trace is not None]
        batch.meta = with_traces(tensor_meta(tensors), traces)
        return batch

    # -- what became of a batch

    def answered(self, batch: Batch, meta: Any, body: memoryview) -> None:
        self.under_way -= len(batch.calls)
        self.wake()
        try:
            outputs = cut(meta, body)
        except BadFrame as error:
            self._refuse(batch.calls, NotServed(500, f"the replica's answer is broken: {error}"))
            return
        now = self.now()
        self._learn(batch, now)
        if len(batch.calls) == 1:
            self._count(batch, now)
            _settle(batch.calls[0], outputs)  # type: ignore[arg-type]
            return
        if any(not shape or shape[0] != batch.rows for _, shape, _ in outputs):
            # The model does not answer row by row after all: ask again, one request a call.
            self._requeue(batch.calls, alone=True)
            return
        self._count(batch, now)
        at = 0
        for call in batch.calls:
            rows = call.parsed.rows
            part: Outputs = []
            for datatype, shape, raw in outputs:
                width = len(raw) // batch.rows
                part.append((datatype, [rows, *shape[1:]], raw[at * width : (at + rows) * width]))
            at += rows
            _settle(call, part)

    def _learn(self, batch: Batch, now: float) -> None:
        """What a call of the model costs, whatever its answer was good for."""
        connection = batch.connection
        if connection is not None and connection.health is not None:
            connection.health.answered(now - batch.sent_s)
            if now - batch.sent_s > self.pace.service_s:  # else it is no slow one
                self._judge(connection)
        self.pace.answered(len(batch.calls), batch.sent_s, now, bool(self.under_way or self.calls))
        self.stats.executed(batch.rows, now - batch.sent_s)
        self.size.observed(batch.rows, now - batch.sent_s)

    def _count(self, batch: Batch, now: float) -> None:
        stats = self.stats
        stats.rows += batch.rows
        stats.success_count += len(batch.calls)
        for call in batch.calls:
            stats.queue_s += batch.sent_s - call.queued_s
            stats.success_s += now - call.queued_s

    def failed(self, batch: Batch, kind: str, message: str) -> None:
        self.under_way -= len(batch.calls)
        if kind == "model" and batch.connection is not None and batch.connection.health is not None:
            batch.connection.health.failed()
            self._judge(batch.connection)
        if kind == "parts":
            self.streams = True
        if kind == "busy":
            self._requeue(batch.calls)
        elif len(batch.calls) > 1:
            # One request may have poisoned the others: let each stand for itself.
            self._requeue(batch.calls, alone=True)
        else:
            self._refuse(batch.calls, NotServed(_FAULT_STATUS.get(kind, 500), message))
        self.wake()

    def lost(self, batch: Batch) -> None:
        """The connection broke before an answer; nobody knows whether the model ran."""
        self.under_way -= len(batch.calls)
        now = self.now()
        # Asked once more, what is too late would only hold another replica.
        late = [c for c in batch.calls if c.deadline_s <= now]
        left = [c for c in batch.calls if c.deadline_s > now]
        again = [c for c in left if self.limits.idempotent and c.attempts < MAX_ATTEMPTS]
        for call in again:
            call.attempts += 1
        gone = [c for c in left if c not in again] if len(again) < len(left) else []
        self._refuse(late, _too_late(self.limits.deadline_s))
        self._refuse(gone, NotServed(503, "the replica was lost while it worked on this", 1.0))
        self._requeue(again)

    def _requeue(self, calls: list[Call], alone: bool = False) -> None:
        for call in reversed(calls):
            if not call.future.done():
                call.alone = call.alone or alone
                self.calls.again(call)
        self.wake()

    def _refuse(self, calls: list[Call], why: NotServed) -> None:
        for call in calls:
            if not call.future.done():
                self.stats.fail_count += 1
                self.stats.fail_s += self.now() - call.queued_s
                call.future.set_exception(why)

    def sweep(self) -> None:
        """Refuse what waited too long. To be called every SWEEP_S seconds."""
        now = self.now()
        for queue in (self.calls.first, self.calls.later):
            self._sweep(queue, now)

    def _sweep(self, queue: deque[Call], now: float) -> None:
        while queue and (queue[0].future.done() or queue[0].deadline_s <= now):
            self._refuse([self.calls.pop(queue)], _too_late(self.limits.deadline_s))
        if self.connections:
            return
        while queue and queue[0].queued_s + self.limits.hold_s <= now:
            self._refuse([self.calls.pop(queue)], NotServed(503, self.waiting_message, RETRY_S))

    def close(self, message: str) -> None:
        """The version is no longer served: refuse what is still queued."""
        self._refuse(self.calls.clear(), NotServed(503, message, 1.0))


def _bound_s(limits: Limits) -> float | None:
    """How long a frame may be with a replica: the other half of the latency is for the queue."""
    return limits.slo_s / 2 if limits.slo_s else None


def _too_late(deadline_s: float) -> NotServed:
    return NotServed(504, f"not answered within the service's deadline of {deadline_s:g} s")


def _preference(connection: Connection) -> tuple[int, int]:
    return connection.load, connection.turn


def _settle(call: Call, outputs: Outputs) -> None:
    if not call.future.done():
        call.future.set_result(outputs)
