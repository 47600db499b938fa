"""A service's replicas as a queue in discrete time: arrivals, slots, starts and their bill.

Serves a trace under any policy that says how many replicas to have, every `tick_s`. One queue in
order of arrival, taken by whichever slot is free first: the router of production is as good as
that when it sends a request where one is free. Knows nothing of how a policy thinks.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sundog.sim.traces import Trace


@dataclass(frozen=True)
class Setting:
    """What is the same for every policy. Times in seconds; the bill in replica-seconds."""

    slots: int = 8
    startup_s: float = 60.0
    tick_s: float = 2.0
    wait_slo_s: float = 5.0
    left_out_s: float = 180.0
    initial: int = 1
    min_replicas: int = 1
    max_replicas: int = 1000


@dataclass(frozen=True)
class Observation:
    """What a policy may see at `now_s`, before it decides. Counts are those of the last tick."""

    now_s: float
    tick_s: float
    ready: int
    starting: int
    queued: int
    running: int
    arrivals: int
    completions: int
    completed_service_s: float
    completed_service_sq_s2: float = 0.0


Policy = Callable[[Observation], int]


@dataclass(frozen=True)
class Outcome:
    """`wait_s` of every request, and the replica counts billed in every tick."""

    wait_s: NDArray[np.float64]
    billed: NDArray[np.int64]
    ready: NDArray[np.int64]
    target: NDArray[np.int64]
    bill_replica_s: float
    slo_attainment: float
    starts: int


@dataclass
class _Replicas:
    """Ready slots in a heap of (free at, replica), the starting ones by when they are ready."""

    setting: Setting
    free: list[tuple[float, int]] = field(default_factory=list)
    starting: deque[float] = field(default_factory=deque)
    draining: list[float] = field(default_factory=list)
    next_id: int = 0
    starts: int = 0

    @property
    def ready(self) -> int:
        return len(self.free) // self.setting.slots

    def add_ready(self, now_s: float) -> None:
        for _ in range(self.setting.slots):
            heapq.heappush(self.free, (now_s, self.next_id))
        self.next_id += 1

    def finish_starts(self, now_s: float) -> None:
        while self.starting and self.starting[0] <= now_s + 1e-9:
            self.starting.popleft()
            self.add_ready(now_s)

    def resize(self, target: int, now_s: float) -> None:
        for _ in range(target - self.ready - len(self.starting)):
            self.starting.append(now_s + self.setting.startup_s)
            self.starts += 1
        surplus = self.ready + len(self.starting) - target
        while surplus > 0 and self.starting:
            self.starting.pop()
            surplus -= 1
        if surplus > 0:
            self._drain(surplus, now_s)

    def _drain(self, count: int, now_s: float) -> None:
        """The replicas that are done first leave: nothing new for them, billed until empty."""
        last: dict[int, float] = {}
        for free_s, replica in self.free:
            last[replica] = max(last.get(replica, now_s), free_s)
        gone = sorted(last, key=lambda replica: (last[replica], replica))[:count]
        self.draining += [last[replica] for replica in gone if last[replica] > now_s]
        leaving = set(gone)
        self.free = [slot for slot in self.free if slot[1] not in leaving]
        heapq.heapify(self.free)

    def billed(self, now_s: float) -> int:
        self.draining = [until for until in self.draining if until > now_s]
        return self.ready + len(self.starting) + len(self.draining)


def warm_start(trace: Trace, setting: Setting) -> Setting:
    """The setting with as many replicas at the beginning as the first minute needs on average, so
    that no policy is judged by how it digs itself out of a cold start under full load.
    """
    first = trace.arrival_s < 60.0
    work = float(trace.service_s[first].sum()) / 60.0 / setting.slots
    return replace(setting, initial=max(math.ceil(1.25 * work), setting.min_replicas, 1))


def simulate(trace: Trace, policy: Policy, setting: Setting | None = None) -> Outcome:
    """Runs the whole trace, then up to ten minutes more, unbilled, for what still waits."""
    setting = setting or Setting()
    tick_s = setting.tick_s
    billed_ticks = math.ceil(trace.duration_s / tick_s)
    extra_ticks = math.ceil(600.0 / tick_s)
    arrivals = trace.arrival_s.tolist()
    services = trace.service_s.tolist()
    edges = np.searchsorted(trace.arrival_s, np.arange(billed_ticks + extra_ticks + 1) * tick_s)
    edges[-1] = len(trace)
    starts_s = np.full(len(trace), np.inf)
    finished = np.zeros(billed_ticks + extra_ticks + 1, dtype=np.int64)
    finished_s = np.zeros(billed_ticks + extra_ticks + 1)
    finished_sq = np.zeros(billed_ticks + extra_ticks + 1)
    replicas = _Replicas(setting)
    for _ in range(setting.initial):
        replicas.add_ready(0.0)
    head = completed = 0
    billed, ready, targets = [], [], []
    for tick in range(billed_ticks + extra_ticks):
        now_s = tick * tick_s
        if tick >= billed_ticks and head >= len(arrivals):
            break
        replicas.finish_starts(now_s)
        last = max(tick - 1, 0)
        arrived = int(edges[tick])
        completed += int(finished[last]) if tick else 0
        seen = Observation(
            now_s,
            tick_s,
            replicas.ready,
            len(replicas.starting),
            arrived - head,
            head - completed,
            int(edges[tick] - edges[last]),
            int(finished[last]) if tick else 0,
            float(finished_s[last]) if tick else 0.0,
            float(finished_sq[last]) if tick else 0.0,
        )
        target = min(max(policy(seen), setting.min_replicas), setting.max_replicas)
        replicas.resize(target, now_s)
        billed.append(replicas.billed(now_s))
        ready.append(replicas.ready)
        targets.append(target)
        begun = head
        until = int(edges[tick + 1])
        head = _serve(replicas.free, arrivals, services, starts_s, head, until, now_s, tick_s)
        if head > begun:
            done = starts_s[begun:head] + trace.service_s[begun:head]
            at = np.minimum((done / tick_s).astype(np.int64), len(finished) - 1)
            np.add.at(finished, at, 1)
            np.add.at(finished_s, at, trace.service_s[begun:head])
            np.add.at(finished_sq, at, trace.service_s[begun:head] ** 2)
    return _outcome(
        trace, setting, starts_s, billed[:billed_ticks], ready, targets, replicas.starts
    )


def _serve(
    free: list[tuple[float, int]],
    arrivals: list[float],
    services: list[float],
    starts_s: NDArray[np.float64],
    head: int,
    until: int,
    now_s: float,
    tick_s: float,
) -> int:
    """Starts, in order, what has arrived and finds a slot before the tick ends; the new head."""
    if not free:
        return head
    end_s = now_s + tick_s
    replace_top = heapq.heapreplace
    begun = []
    first = head
    while head < until:
        free_s, replica = free[0]
        start_s = arrivals[head]
        if start_s < now_s:
            start_s = now_s
        if free_s > start_s:
            start_s = free_s
        if start_s >= end_s:
            break
        replace_top(free, (start_s + services[head], replica))
        begun.append(start_s)
        head += 1
    starts_s[first:head] = begun
    return head


def _outcome(
    trace: Trace,
    setting: Setting,
    starts_s: NDArray[np.float64],
    billed: list[int],
    ready: list[int],
    targets: list[int],
    starts: int,
) -> Outcome:
    wait_s = starts_s - trace.arrival_s
    judged = trace.arrival_s >= setting.left_out_s
    within = wait_s[judged] <= setting.wait_slo_s
    bill = np.asarray(billed, dtype=np.int64)
    counted = bill[math.ceil(setting.left_out_s / setting.tick_s) :]
    return Outcome(
        wait_s=wait_s,
        billed=bill,
        ready=np.asarray(ready[: len(bill)], dtype=np.int64),
        target=np.asarray(targets[: len(bill)], dtype=np.int64),
        bill_replica_s=float(counted.sum() * setting.tick_s),
        slo_attainment=float(within.mean()) if within.size else 1.0,
        starts=starts,
    )
