"""The real half of `goodput.py --real`: worker processes that come, are killed and grow by a trace.

Real processes and real gloo on this machine, `kill -9` for a removal (or SIGTERM after a notice).
A trace is thinned to a few nodes, keeping its shape, and compressed in time; what the stages cost
is measured before, and given to the simulator for the same events.
"""

from __future__ import annotations

import os
import queue
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from exactness import Digits

from sundog.runs.goodput import Account
from sundog.runs.loop import YIELD
from sundog.runs.processes import Job, LocalGroup, Member
from sundog.runs.resize import Snapshot, decide
from sundog.runs.verify import verify
from sundog.spec.run import RunSpec
from sundog.storage.root import open_root

_POLL_S = 0.005
_BATCH = 960  # a step of some milliseconds, divided by any of 1 to 4 workers


@dataclass(frozen=True)
class Event:
    """From `at_s` on the run has `nodes` nodes; which ones go is the newest ones' turn."""

    at_s: float
    nodes: int


def thinned(
    counts: Sequence[tuple[float, int]], most: int, changes: int, seconds: float
) -> list[Event]:
    """A trace's number of nodes over time as at most `changes` events of 1..`most` nodes in `seconds`.

    The shape stays: `most` stands for the trace's peak. A run that has nobody left has no goodput to
    speak of, so one node always stays.
    """
    peak = max(count for _, count in counts)
    scaled = [(at, max(1, round(count * most / peak))) for at, count in counts]
    kept = [scaled[0]]
    for at, count in scaled[1:]:
        if count != kept[-1][1]:
            kept.append((at, count))
    kept = kept[: changes + 1]
    end = next((at for at, _ in scaled if at > kept[-1][0]), kept[-1][0] + 1)
    span = max(end, kept[-1][0] * 1.1) - kept[0][0] or 1.0
    return [Event((at - kept[0][0]) / span * seconds, count) for at, count in kept]


@dataclass
class Node:
    """One node's life on this machine, in seconds of the replay."""

    added_s: float
    member: Member | None = None
    ready_s: float | None = None
    removed_s: float | None = None


@dataclass
class Generation:
    """One group: from its forming, over its first and last step, to the next one's forming."""

    members: list[Member]
    formed_s: float
    step: int
    first_s: float | None = None
    last_s: float | None = None
    steps: int = 0


@dataclass
class Measured:
    """Stage costs in seconds, as they were seen; each list has one number per event."""

    startup: list[float] = field(default_factory=list)
    shrink: list[float] = field(default_factory=list)
    grow: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)

    def costs(self) -> dict[str, float]:
        """What `Policy` of goodput.py takes."""
        shrink = _middle(self.shrink)
        return {
            "startup_s": _middle(self.startup), "shrink_s": shrink, "grow_s": _middle(self.grow),
            "cold_s": shrink, "checkpoint_s": 0.0, "step_s": _middle(self.step),
        }  # fmt: skip


def _middle(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


class Replay:
    """Drives a group of processes through the events and accounts for every node-second."""

    def __init__(self, group: LocalGroup, most: int, notice: bool) -> None:
        self.group, self.most, self.notice = group, most, notice
        self.nodes: list[Node] = []
        self.generations: list[Generation] = []
        self.measured = Measured()
        self.grow_s = 0.5  # until one was seen
        self._threads: list[threading.Thread] = []
        self._started: queue.SimpleQueue[tuple[Node, Member]] = queue.SimpleQueue()
        self._began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began

    def run(self, events: Sequence[Event], seconds: float) -> Account:
        self._began = time.monotonic()
        waiting = list(events)
        while self.now() < seconds:
            while waiting and waiting[0].at_s <= self.now():
                self._to(waiting.pop(0).nodes)
            self._admit()
            self._observe()
            self._grow_if_due(seconds)
            time.sleep(_POLL_S)
        self._end_group()
        for thread in self._threads:
            thread.join()
        self._admit()
        return self._account(seconds)

    # --- nodes ----------------------------------------------------------------------------------

    def _alive(self) -> list[Node]:
        return [n for n in self.nodes if n.removed_s is None]

    def _to(self, count: int) -> None:
        alive = self._alive()
        for _ in range(count - len(alive)):
            node = Node(self.now())
            self.nodes.append(node)
            thread = threading.Thread(target=self._start, args=(node,), daemon=True)
            self._threads.append(thread)
            thread.start()
        if gone := alive[count:]:
            self._remove(gone)

    def _start(self, node: Node) -> None:
        """In a thread: a process takes seconds, in which the others go on."""
        single = LocalGroup(self.group._job)
        single._losses = self.group._losses
        single.grow(1)
        node.ready_s = self.now()
        self._started.put((node, single.members.pop()))

    def _admit(self) -> None:
        """Those that have started wait for the next group, unless their node is gone already."""
        while not self._started.empty():
            node, member = self._started.get()
            assert node.ready_s is not None
            self.measured.startup.append(node.ready_s - node.added_s)
            node.member = member
            if node.removed_s is None:
                self.group.members.append(member)
            else:
                member.process.kill()

    def _remove(self, gone: Sequence[Node]) -> None:
        working = any(n.member is not None and n.member.state == "working" for n in gone)
        if working and self.notice:
            self._end_group()  # a step boundary inside the notice: nothing is lost
        for node in gone:
            node.removed_s = self.now()
            if node.member is None:
                continue
            os.kill(node.member.process.pid, signal.SIGTERM if self.notice else signal.SIGKILL)
            node.member.process.join()
            self.group.members.remove(node.member)
        if working:
            began = self.now()
            if not self.notice:
                self._settle()
            if self.group.members:
                self._form()
                self._wait_for_step()
                self.measured.shrink.append(self.now() - began)

    # --- the group ------------------------------------------------------------------------------

    def _grow_if_due(self, end_s: float) -> None:
        warm = [m for m in self.group.members if m.state != "working"]
        working = [m for m in self.group.members if m.state == "working"]
        if not warm:
            return
        decision = decide(
            Snapshot(
                working=len(working), lost=0, leaving=0, warm=len(warm), warming=0, low=1,
                high=self.most, grow_pause_s=self.grow_s, left_s=max(0.0, end_s - self.now()),
            )
        )  # fmt: skip
        if decision.what != "grow":
            return
        began = self.now()
        self._end_group()
        self._form()
        self._wait_for_step()
        if working:
            self.measured.grow.append(self.now() - began)
            self.grow_s = _middle(self.measured.grow)

    def _form(self) -> None:
        members = list(self.group.members)
        self.group.form()
        self.generations.append(Generation(members, self.now(), self.group.step()))

    def _end_group(self) -> None:
        self._observe()
        if any(m.state == "working" for m in self.group.members):
            self.group.ask(YIELD)
            self._settle()

    def _settle(self) -> None:
        self.group.settle(60)
        self._observe()

    def _wait_for_step(self) -> None:
        deadline = self.now() + 60
        while self.generations[-1].first_s is None and self.now() < deadline:
            self._observe()
            time.sleep(_POLL_S)

    def _observe(self) -> None:
        if not self.generations:
            return
        now, generation = self.now(), self.generations[-1]
        step = max((m.step.value for m in generation.members), default=-1)
        if step > generation.step + generation.steps:
            generation.steps = step - generation.step
            if generation.first_s is None:
                generation.first_s = now
            else:
                generation.last_s = now

    # --- the account ----------------------------------------------------------------------------

    def _account(self, end_s: float) -> Account:
        account = Account()
        for node in self.nodes:
            gone = min(end_s, node.removed_s if node.removed_s is not None else end_s)
            ready = min(gone, node.ready_s if node.ready_s is not None else gone)
            account.lose("startup", ready - node.added_s)
            at = ready
            for number, one in enumerate(self.generations):
                later = self.generations[number + 1 :]
                over = min(gone, later[0].formed_s if later else end_s)
                if node.member not in one.members or over <= at:
                    continue
                account.lose("idle", max(0.0, one.formed_s - at))
                first = min(over, max(at, one.first_s if one.first_s is not None else over))
                last = min(over, max(first, one.last_s or first))
                if later or gone < end_s:
                    account.lose("restart", (first - max(at, one.formed_s)) + (over - last))
                    account.work(last - first)
                else:  # the last one worked to the end
                    account.lose("restart", first - max(at, one.formed_s))
                    account.work(over - first)
                at = over
            account.lose("idle", max(0.0, gone - at))
        for one in self.generations:
            if one.steps > 20 and one.first_s is not None and one.last_s:
                self.measured.step.append((one.last_s - one.first_s) / (one.steps - 1))
        return account


def job(root: str) -> Job:
    spec = RunSpec.model_validate(
        {"run": "goodput", "recipe": "exactness:Digits", "workers": "1..4", "batch": _BATCH,
         "micro_batch": _BATCH // 12, "steps": 200_000, "checkpoint": {"every": "20s", "keep": 2}}
    )  # fmt: skip
    return Job(spec, Digits, root)


def calibrate(most: int, notice: bool, rounds: int = 3) -> dict[str, float]:
    """Stage costs on this machine: start, shrink and grow, a few of each, nothing else."""
    with tempfile.TemporaryDirectory() as root, LocalGroup(job(root)) as group:
        replay = Replay(group, most, notice)
        replay._to(2)
        _until(replay, 2)
        for _ in range(rounds):
            replay._to(1)
            _until(replay, 1)
            replay._to(2)
            _until(replay, 2)
        replay._end_group()
        replay._account(replay.now())
        return replay.measured.costs()


def _until(replay: Replay, workers: int) -> None:
    deadline = replay.now() + 120
    while replay.now() < deadline:
        replay._admit()
        replay._observe()
        replay._grow_if_due(deadline)
        working = sum(m.state == "working" for m in replay.group.members)
        if working == workers and replay.generations[-1].steps > 60:
            return
        time.sleep(_POLL_S)
    raise TimeoutError(f"{workers} workers never stepped")


def replay_really(
    events: Sequence[Event], seconds: float, most: int, notice: bool
) -> tuple[Account, dict[str, object]]:
    """The account of a real run of `seconds` under these events, and what else was seen."""
    with tempfile.TemporaryDirectory() as root, LocalGroup(job(root)) as group:
        replay = Replay(group, most, notice)
        account = replay.run(events, seconds)
        verdict = None
        if open_root(root).children("runs/local/checkpoints"):
            verdict = verify(open_root(root), "local")
        return account, {
            "stages": replay.measured.costs(),
            "groups": len(replay.generations),
            "steps": group.step(),
            "lost": verdict.lost if verdict else None,
            "duplicated": verdict.duplicated if verdict else None,
        }
