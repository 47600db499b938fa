"""The loop's parts for a training function of your own under Ray Train: order, checkpoints, goodput.

Each works without the others. None of them owns your loop: what they promise holds for what you
tell them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from sundog.clock import WALL, Clock
from sundog.errors import ClusterError, RunError
from sundog.runs.checkpoint import Checkpoints
from sundog.runs.goodput import Meter
from sundog.runs.interval import Cadence
from sundog.runs.ledger import Plan
from sundog.spec.cuts import micro_batches
from sundog.spec.quantity import parse_interval

_STATE = "state.pt"
_LOOK_EVERY_S = 1.0


class ElasticSampler:
    """The rows of each step for this worker: the union over workers is the same at any world size.

    A batch sampler for `torch.utils.data.DataLoader(…, batch_sampler=sampler)`: each item is this
    worker's rows of one step. Shares are whole micro-batches, so they may differ by one; multiply
    the loss by `weight` before `backward()` where gradients are averaged over workers (DDP).
    """

    def __init__(
        self, rows: int, batch: int, *, seed: int = 0, rank: int = 0, world: int = 1,
        micro_batch: int | None = None, most_workers: int = 8,
        locality: tuple[int, int] | tuple[()] = (),
    ) -> None:  # fmt: skip
        self._cut = micro_batch is not None
        try:
            count = micro_batches(batch, micro_batch, max(world, most_workers))
        except ValueError as error:
            raise RunError(str(error), "make batch larger, or workers fewer") from None
        self.plan = Plan(rows, batch, count, seed, *locality)
        self.rank, self.world = rank, world
        self.step = 0
        self.steps: int | None = None

    @property
    def weight(self) -> float:
        """This worker's share of the batch, relative to an equal one."""
        start, stop = self.plan.rows_of(0, self.world, self.rank)
        return (stop - start) * self.world / self.plan.batch

    @property
    def epoch(self) -> float:
        return self.plan.sampler.epoch_at(self.step)

    def rows(self, step: int) -> list[int]:
        """This worker's rows of a step."""
        start, stop = self.plan.rows_of(step, self.world, self.rank)
        found: list[int] = self.plan.sampler.indices(step, start, stop).tolist()
        return found

    def until(self, steps: int) -> ElasticSampler:
        """The same sampler, which ends before step `steps`."""
        self.steps = steps
        return self

    def __iter__(self) -> Iterator[list[int]]:
        # A DataLoader reads ahead: where the run stands is what its loop says, not what was read.
        step = self.step
        while self.steps is None or step < self.steps:
            yield self.rows(step)
            step += 1

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("a sampler without an end has no length; say until(steps)")
        return max(0, self.steps - self.step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps. Set `step` to the steps that are done before."""
        return {"step": self.step, "plan": vars(self.plan).copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, at any world size. RunError when the data or the batch is another."""
        before = Plan(**state["plan"])
        # Into how many pieces a batch is cut is no choice of the user's unless he names their size:
        # the run keeps its own, which others give when `most_workers` or the world is another.
        if not self._cut and self.world <= before.count:
            self.plan = replace(self.plan, count=before.count)
        if before != self.plan:
            old, new = vars(before), vars(self.plan)
            differ = [f"{key} {old[key]}, not {new[key]}" for key in old if old[key] != new[key]]
            fix = "keep them as they were, or start a new run"
            if before.count < self.world:
                fix = (
                    f"its batches are cut for {before.count} workers at most: take no more, or start "
                    f"a new run with most_workers={self.world}"
                )
            raise RunError(
                f"the checkpoint is of another order of samples: it has {', '.join(differ)}", fix
            )
        self.step = int(state["step"])


class NodeNotice:
    """Whether a node of this Ray cluster is about to go: polled in the background, free to ask."""

    def __init__(self, address: str | None = None, every_s: float = _LOOK_EVERY_S) -> None:
        self._address, self._every_s = address, every_s
        self._stop, self._seen = threading.Event(), threading.Event()
        self._known: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True, name="node-notice")

    def start(self) -> NodeNotice:
        if self._address is None:
            import ray

            self._address = ray.get_runtime_context().gcs_address
        self._thread.start()
        return self

    def taken(self) -> bool:
        """True once for each notice that has come since."""
        if self._seen.is_set():
            self._seen.clear()
            return True
        return False

    def close(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        from sundog.rayapi.drain import Gcs

        gcs = Gcs(str(self._address))
        while not self._stop.wait(self._every_s):
            with suppress(ClusterError):  # away for a moment: the next look will tell
                leaving = {n.node_id for n in gcs.nodes() if n.status == "DRAINING"}
                if leaving - self._known:
                    self._seen.set()
                self._known |= leaving


class JustInTimeCheckpoint:
    """Saves when it pays, and at once when a node of the cluster is told to leave.

    Call `step(n, state)` after every step on the rank that saves. `state` is a function: it is
    called only when something is saved, and gives tensors and plain values. Checkpoints lie under
    `runs/<name>/checkpoints` of a storage root, whole or not at all; a damaged one is passed over.
    `every` is what a spec has: `auto`, a number of steps, `200 steps` or `10min`.
    """

    def __init__(
        self,
        name: str,
        *,
        root: str | None = None,
        every: str | int = "auto",
        keep: int = 2,
        workers: int = 1,
        notice: NodeNotice | None = None,
        clock: Clock = WALL,
    ) -> None:
        from sundog.runs.place import resolve_root
        from sundog.storage.documents import require_name

        try:
            every = parse_interval(every)
        except ValueError as error:
            raise RunError(f"every: {error}", "every='10min', for example") from None
        self.root = resolve_root(root)
        prefix = f"runs/{require_name(name, 'run')}/checkpoints"
        self._checkpoints = Checkpoints(self.root, prefix, keep, clock)
        self._cadence, self._notice, self._clock = Cadence(every, workers), notice, clock
        self._saved_step, self._saved_s = 0, clock.monotonic_s()
        self.stall_s = 0.0

    def latest(self) -> dict[str, Any] | None:
        """The state of the newest good checkpoint, or None."""
        import io

        import torch

        found = self._checkpoints.latest()
        if found is None:
            return None
        self._saved_step = found.step
        data = io.BytesIO(found.parts[_STATE])
        state: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
        return state

    def step(self, step: int, state: Callable[[], Mapping[str, Any]], last: bool = False) -> bool:
        """Save if it is time to, if a notice has come, or if this is the last; whether it was."""
        now_s = self._clock.monotonic_s()
        told = self._notice is not None and self._notice.taken()
        due = self._cadence.due(step - self._saved_step, now_s - self._saved_s)
        if not (told or due or last) or step == self._saved_step:
            return False
        self._save(step, dict(state()), "notice" if told else "last" if last else "due")
        stall_s = self._clock.monotonic_s() - now_s
        self.stall_s += stall_s
        self._cadence.saw_stall(stall_s)
        self._saved_step, self._saved_s = step, self._clock.monotonic_s()
        return True

    def _save(self, step: int, state: dict[str, Any], why: str) -> None:
        import io

        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._checkpoints.save(step, {_STATE: buffer.getvalue()}, {"why": why})


class GoodputMeter:
    """Where this run's node-seconds went: tell it of each step, and of what was waited for."""

    def __init__(self, nodes: int, clock: Clock = WALL) -> None:
        self._nodes, self._clock = nodes, clock
        self._meter = Meter()
        self._since_s = clock.monotonic_s()

    def stepped(self, step: int, stall_s: float = 0.0) -> None:
        """The run is at `step`; a step below an earlier one means that work was lost. `stall_s` is
        what all checkpoints cost so far (`JustInTimeCheckpoint.stall_s`)."""
        now_s = self._clock.monotonic_s()
        self._meter.stepped(step, self._nodes, now_s - self._since_s, stall_s)
        self._since_s = now_s

    @contextmanager
    def waiting(self, why: str) -> Iterator[None]:
        """What passes inside is no work: startup, restart or idle."""
        began_s = self._clock.monotonic_s()
        yield
        now_s = self._clock.monotonic_s()
        self._meter.waited(why, self._nodes, now_s - began_s)
        self._since_s = now_s

    @property
    def goodput(self) -> float:
        """Useful share of the node-seconds so far, 0..1."""
        return self._meter.account.goodput

    @property
    def seconds(self) -> dict[str, float]:
        """Node-seconds, `useful` and each loss by name."""
        return self._meter.account.seconds()
