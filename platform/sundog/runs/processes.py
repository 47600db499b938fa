"""An elastic group of training processes on this machine, without Ray: real gloo, real kills.

What the exactness tests and benchmarks drive. Survivors keep their process and their state; a
newcomer copies it from them. Decides nothing about when to grow or shrink.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from sundog.clock import WALL
from sundog.errors import RunError, SundogError
from sundog.spec.run import RunSpec

_TIMEOUT_S = 600.0  # a busy machine may take minutes to start a process


@dataclass(frozen=True)
class Job:
    """What every process of the group builds its loop from. `recipe` is called in the process."""

    spec: RunSpec
    recipe: Callable[[], Any]
    root: str | None = None  # where checkpoints go; None: nowhere
    folder: str = "runs/local"


@dataclass
class Member:
    process: Any
    pipe: Connection
    ask: Any  # a shared int: the flag that the loop reads at every step
    step: Any  # a shared int: where it stands
    state: str = "idle"


@dataclass
class Ended:
    """What a finished group left: its curve (by step), parameters and metrics, of rank 0."""

    curve: dict[int, float]
    parameters: Any
    metrics: dict[str, float]
    generations: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class LocalGroup:
    """Processes of one job. `form` puts the living ones to work as one group."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._context = mp.get_context("spawn")
        self.members: list[Member] = []
        self.generation = 0
        # Every member writes the loss of every step it takes part in: what was computed again by
        # later members must be the same, and the curve outlives those that are killed.
        self._losses = self._context.RawArray("d", [float("nan")] * ((job.spec.steps or 0) + 1))

    def grow(self, count: int) -> None:
        """Start processes; they are ready when they have imported torch and built their loop."""
        new = []
        for _ in range(count):
            ours, theirs = self._context.Pipe()
            ask, step = self._context.Value("i", 0), self._context.Value("i", -1)
            process = self._context.Process(
                target=_member, args=(self._job, theirs, ask, step, self._losses), daemon=True
            )
            process.start()
            theirs.close()
            new.append(Member(process, ours, ask, step))
        for member in new:
            self._expect(member, "ready")
        self.members += new

    def form(self, world: int | None = None) -> None:
        """Join the first `world` members (else all) into a new group and let them step."""
        chosen = self.members[:world]
        self.generation += 1
        port = None
        for rank, member in enumerate(chosen):
            member.ask.value = 0
            member.pipe.send(("join", rank, len(chosen), port))
            if rank == 0:
                port = self._expect(member, "listening")
            member.state = "working"

    def ask(self, flag: int) -> None:
        """Let all working members see this flag at their next step."""
        for member in self.members:
            member.ask.value = flag

    def kill(self, index: int) -> None:
        """`kill -9` of a member."""
        member = self.members.pop(index)
        os.kill(member.process.pid, signal.SIGKILL)
        member.process.join()
        member.pipe.close()

    def settle(self, timeout_s: float = _TIMEOUT_S) -> list[str]:
        """Wait until no member works; returns how each ended: finished, yielded, lost, failed…"""
        deadline_s = WALL.monotonic_s() + timeout_s
        while working := [m for m in self.members if m.state == "working"]:
            left_s = deadline_s - WALL.monotonic_s()
            if left_s <= 0:
                raise RunError(f"{len(working)} processes hang")
            for pipe in wait([m.pipe for m in working], left_s):
                member = next(m for m in working if m.pipe is pipe)
                try:
                    member.state = str(member.pipe.recv())
                except EOFError:
                    member.state = "dead"
        self.members = [m for m in self.members if m.state != "dead"]
        return [m.state for m in self.members]

    def step(self) -> int:
        return max((m.step.value for m in self.members), default=-1)

    def wait_for(self, step: int, timeout_s: float = _TIMEOUT_S) -> bool:
        """Whether the group came to `step`; False when it stopped working before."""
        deadline_s = WALL.monotonic_s() + timeout_s
        while self.step() < step:
            if any(m.pipe.poll() for m in self.members if m.state == "working"):
                return False
            if WALL.monotonic_s() > deadline_s:
                raise RunError(f"step {step} was not reached in {timeout_s:.0f} s")
            WALL.sleep(0.005)
        return True

    def result(self) -> Ended:
        """What the first member holds."""
        member = self.members[0]
        member.pipe.send(("result",))
        curve, parameters, metrics = member.pipe.recv()
        return Ended(curve, parameters, metrics, self.generation)

    def curve(self) -> dict[int, float]:
        """The loss of each step, whoever computed it last."""
        return {s: v for s, v in enumerate(self._losses) if s and v == v}

    def close(self) -> None:
        for member in self.members:
            if member.process.is_alive():
                member.process.kill()
            member.process.join()
            member.pipe.close()
        self.members = []

    def __enter__(self) -> LocalGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _expect(self, member: Member, word: str) -> Any:
        if not member.pipe.poll(_TIMEOUT_S):
            raise RunError("a process did not answer")
        said, value = member.pipe.recv()
        if said != word:
            raise RunError(f"a process said {said}: {value}")
        return value


def _member(job: Job, pipe: Any, ask: Any, step: Any, losses: Any) -> None:
    """One process: builds its loop once, then joins one group after the other."""
    import torch

    from sundog.runs.interval import Cadence
    from sundog.runs.loop import Loop
    from sundog.runs.saver import saver_of

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop = Loop(job.spec, job.recipe(), asked=lambda: int(ask.value))
    if job.root:
        from sundog.storage.root import open_root

        loop.saver = saver_of(job.spec)(
            open_root(job.root), job.folder, keep=job.spec.checkpoint.keep,
            cadence=Cadence(job.spec.checkpoint.every),
        )  # fmt: skip
    curve: dict[int, float] = {}

    def trace(at: int, loss: float) -> None:
        curve[at] = losses[at] = loss
        step.value = at

    loop.trace = trace
    pipe.send(("ready", os.getpid()))
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if message[0] == "result":
            flat = torch.cat([_own(p).detach().flatten() for p in loop.params]).numpy()
            pipe.send((curve, flat, loop.metrics))
            continue
        pipe.send(_one_group(loop, pipe, *message[1:]))


def _own(parameter: Any) -> Any:
    """A parameter, or this process's shard of it."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def _one_group(loop: Any, pipe: Any, rank: int, world: int, port: int | None) -> str:
    import torch.distributed as dist

    from sundog.runs.exchange import PeerLost, connect

    exchange = None
    try:
        store = None
        if world > 1:
            store = dist.TCPStore(
                "127.0.0.1", port or 0, is_master=rank == 0, wait_for_workers=False
            )
        if rank == 0:
            pipe.send(("listening", store.port if store else 0))
        exchange = connect(store, rank, world, backend="gloo", exact=loop.spec.exact, timeout_s=60)
        loop.join(exchange)
        outcome = loop.run()
        return outcome.state if not outcome.why else f"failed: {outcome.why}"
    except PeerLost:
        return "lost"
    except SundogError as error:
        return f"failed: {error.message}"
    except RuntimeError as error:  # the group could not even form
        return f"lost: {error}"
    finally:
        if exchange is not None:
            exchange.leave()
