"""When a run's state is saved, and the turning of it into bytes and back.

Saves in the background so that a step waits only for a copy in memory; decides when by an interval
that is handed to it. Where the bytes lie is `checkpoint.py`'s business.
"""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sundog.clock import WALL, Clock
from sundog.errors import Corrupt, RunError, SundogError, first_line
from sundog.rayapi.train_slot import LONGEST_SILENCE_S
from sundog.runs import ledger
from sundog.runs.checkpoint import Checkpoint, Checkpoints
from sundog.runs.interval import Cadence
from sundog.runs.replica import diverged

if TYPE_CHECKING:
    from sundog.runs.loop import Loop
    from sundog.runs.stage import Stage, Staged
    from sundog.spec.run import RunSpec
    from sundog.storage.root import Root

STATE = "state.pt"
_LONGEST_WAIT_S = LONGEST_SILENCE_S / 2


class Saver:
    """Writes a loop's checkpoints and its ledger, and finds the one to go on from."""

    def __init__(
        self,
        root: Root,
        folder: str,
        *,
        keep: int,
        cadence: Cadence,
        note: Callable[[str, Mapping[str, Any]], None] = lambda event, fields: None,
        clock: Clock = WALL,
        stage: Stage | None = None,
    ) -> None:
        self._stage = stage
        self._ahead: Staged | None = None
        self.checkpoints = Checkpoints(root, f"{folder}/checkpoints", keep, clock)
        self._root, self._folder = root, folder
        self._cadence, self._note, self._clock = cadence, note, clock
        self.settled: tuple[int, list[str]] = (0, [])  # a step, and the ledger's segments up to it
        self._thread: threading.Thread | None = None
        self._error: SundogError | None = None
        self._saved_step = -1
        self._saved_s = clock.monotonic_s()
        self.stall_s = 0.0  # what steps have waited for saves, those of the best model too

    def meet(self, world: int) -> None:
        """A new group of `world` workers; where one writes for all there is nothing to do."""

    def due(self, loop: Loop) -> bool:
        """Whether it is time to save after the present step."""
        now_s = self._clock.monotonic_s()
        return self._cadence.due(loop.step + 1 - max(self._saved_step, 0), now_s - self._saved_s)

    # --- writing --------------------------------------------------------------------------------

    def offer(self, loop: Loop, now: bool = False) -> None:
        """Save if it is time to (or `now`). Raises what the last background save failed with."""
        if self._error:
            error, self._error = self._error, None
            raise error
        began = self._clock.monotonic_s()
        busy = self._thread is not None and self._thread.is_alive()
        due = self._cadence.due(loop.step - max(self._saved_step, 0), began - self._saved_s)
        # A fixed number of steps is a promise, and waits for the save before; a time is not.
        late = busy and not self._cadence.fixed
        if loop.step == self._saved_step or not (now or (due and not late)):
            return
        if not self._wait(_LONGEST_WAIT_S):
            self.stall_s += self._clock.monotonic_s() - began
            return  # the others would call this worker lost: the next step asks again
        # The ledger's next segment is committed with this checkpoint: it names it.
        segment, entries = segment_name(loop.entries), loop.entries
        loop.segments, loop.entries = [*loop.segments, *segment], []
        state = loop.snapshot()
        self._saved_step, self._saved_s = loop.step, began
        stall_s = self._stalled(began)
        self._thread = threading.Thread(
            target=self._write, args=(state, loop.plan, segment, entries, began, stall_s),
            daemon=True, name="checkpoint",
        )  # fmt: skip
        self._thread.start()

    def _stalled(self, began: float) -> float:
        """Seconds that a step waited for a save which began then; taken note of."""
        stall_s = self._clock.monotonic_s() - began
        self.stall_s += stall_s
        self._cadence.saw_stall(stall_s)
        return stall_s

    def close(self) -> None:
        """Wait for what is being written. Raises what it failed with."""
        self.settle()
        if self._error:
            raise self._error

    def settle(self) -> None:
        """Wait for what is being written; a failure is raised by the next offer."""
        self._wait()

    def _wait(self, limit_s: float | None = None) -> bool:
        """Whether nothing is being written any more."""
        if self._thread is not None:
            self._thread.join(limit_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def _write(
        self,
        state: dict[str, Any],
        plan: ledger.Plan,
        segment: list[str],
        entries: list[ledger.Entry],
        began: float,
        stall_s: float,
    ) -> None:
        step = state["step"]
        try:
            check_finite(step, state["model"])
            for name in segment:
                self._root.write(f"{self._folder}/ledger/{name}", ledger.encode(plan, entries))
            self.settled = (step, list(state["segments"]))
            state["plan"] = vars(plan)
            about = {
                "metrics": state["metrics"], "plan": vars(plan), "ledger": state["segments"]
            }  # fmt: skip
            told: dict[str, Any] = {"step": step, "stall_s": stall_s}
            staged = self._stage.write(step, state, about) if self._stage else None
            if staged:
                state.clear()  # a slow upload need not hold it in memory
                told["local_s"] = self._clock.monotonic_s() - began
            told["bytes"] = self.checkpoints.save(step, {STATE: staged or _bytes(state)}, about)
            told["took_s"] = self._clock.monotonic_s() - began
            if self._stage:
                self._stage.drop(step)
            self._note("checkpoint", told)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next offer says it
            self._error = unwritten(step, error)

    # --- reading --------------------------------------------------------------------------------

    def find(self, loop: Loop) -> int | None:
        """The step of the newest good checkpoint; None: there is none."""
        found = self.checkpoints.latest(
            lambda step, why: self._note("skipped", {"step": step, "why": why})
        )
        return None if found is None else found.step

    def load(self, loop: Loop, step: int) -> None:
        """Put the state of checkpoint `step` into the loop."""
        checkpoint = self.checkpoints.read(step)
        state = unpack(checkpoint)
        about = checkpoint.about
        self.check_plan(about["plan"], loop)
        self._saved_step = step
        if STATE in checkpoint.parts:
            loop.adopt(state)
        else:  # the other layout's
            loop.replica.load_named(state, step)
            loop.go_on_from(step, about)

    def staged(self, after: int) -> int:
        """The step of a good checkpoint on this node's disk that is newer than `after`, which is what the
        root has; 0: there is none."""
        self._ahead = self._stage.newest() if self._stage else None
        return self._ahead.step if self._ahead and self._ahead.step > after else 0

    def load_staged(self, loop: Loop) -> None:
        """Put the state that `staged` found into the loop."""
        assert self._ahead is not None
        self.check_plan(self._ahead.about["plan"], loop)
        loop.adopt(torch.load(self._ahead.path, map_location="cpu", weights_only=True))
        self._note("staged", {"step": self._ahead.step})

    def check_plan(self, plan: Mapping[str, int], loop: Loop) -> None:
        """RunError when the checkpoint was made under another plan than the loop's. Where no exact curve
        is promised, micro-batches may be others."""
        before = ledger.Plan(**plan)
        if before != loop.plan and (loop.spec.exact or not before.goes_on(loop.plan)):
            raise _other_plan(plan, vars(loop.plan), loop.spec.workers.high or 1)


def _bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def saver_of(spec: RunSpec) -> type[Saver]:
    """The saver of the spec's layout."""
    if spec.layout == "ddp":
        return Saver
    from sundog.runs.sharded_saver import ShardedSaver

    return ShardedSaver


def check_finite(step: int, model: Mapping[str, Any]) -> None:
    """Diverged where weights are NaN or infinite: nobody wants to go on from them."""
    for name, value in model.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        own = value.to_local() if hasattr(value, "to_local") else value
        if not bool(torch.isfinite(own).all()):
            raise diverged(step, f"{name} is not finite any more")


def unwritten(step: int, error: BaseException) -> SundogError:
    """The fault of a background save, as the run is told of it."""
    if isinstance(error, SundogError):
        return error
    return RunError(
        f"the checkpoint of step {step} could not be written: {type(error).__name__}: "
        f"{first_line(error)}",
        "the last good one is kept: see to memory and disk, and submit the same run id again",
    )


def segment_name(entries: list[ledger.Entry]) -> list[str]:
    """A fresh name for the ledger's next segment; none when nothing happened since the last."""
    if not entries:
        return []
    return [f"{entries[0].step:09d}-{entries[-1].step:09d}-{uuid.uuid4().hex[:8]}.json"]


_OF_PLAN = {
    "rows": ("rows of training data", "pin the data (data: name@version)"),
    "batch": ("batch", "write batch: {old}"),
    "count": ("micro-batches", ""),
    "seed": ("seed", "write seed: {old}"),
    "block": ("rows that lie together in the data", "read the same version with the same columns"),
    "window": ("window of row groups", "have dataset() give window={old} again"),
}


def _other_plan(old: Mapping[str, int], new: Mapping[str, int], most_workers: int) -> RunError:
    """Each change with its own way back."""
    changes, ways = [], []
    for key, (name, way) in _OF_PLAN.items():
        was = old.get(key, 0)
        if was == new[key]:
            continue
        changes.append(f"{name} {was} → {new[key]}")
        if key != "count":
            ways.append(way.format(old=was))
        elif old.get("batch") == new["batch"]:  # else they follow from the batch
            # The cut follows the most workers, unless the spec says how large a piece is.
            cut = f"write micro_batch: {old['batch'] // was}"
            ways.append(cut if most_workers <= was else f"{cut} and workers: {was} at most")
    return RunError(
        f"this run cannot go on: since its last checkpoint {', '.join(changes)} changed",
        f"{', '.join(ways)}; or start a new run",
    )


def unpack(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state in a checkpoint; of a sharded one the whole model's.

    Unpickles nothing but tensors and plain values, except torch's index of a sharded checkpoint,
    which the manifest's hash vouches for.
    """
    if STATE not in checkpoint.parts and checkpoint.about.get("layout") == "fsdp":
        from sundog.runs.sharded_saver import whole_model

        return whole_model(checkpoint)
    try:
        return torch.load(
            io.BytesIO(checkpoint.parts[STATE]), map_location="cpu", weights_only=True
        )
    except (RuntimeError, KeyError, EOFError, ValueError) as error:
        raise Corrupt(f"checkpoint {checkpoint.step} cannot be read: {error}") from None
