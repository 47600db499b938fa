"""The training loop: one step after the other, the same bits at any number of workers.

Owns the order of work inside a run: which rows, when to evaluate, to save, to stop. The arithmetic is
`replica.py`'s. Knows nothing of Ray: it is given an exchange, a place for checkpoints, somebody to tell.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sundog.clock import WALL, Clock
from sundog.errors import Diverged, NotFound, RecipeError, RunError, StorageUnavailable
from sundog.runs.evaluate import evaluate
from sundog.runs.exchange import Exchange, in_turns
from sundog.runs.ledger import Entry, Plan
from sundog.runs.recipe import blamed
from sundog.runs.replica import Replica, diverged
from sundog.runs.sampler import fingerprint, mix
from sundog.spec.cuts import micro_batches

if TYPE_CHECKING:
    from sundog.runs.saver import Saver
    from sundog.spec.run import RunSpec

# What a worker tells the others in the header of its gradient. The highest one wins.
# YIELD hands the loop back at a step boundary with its state in memory, for the next group;
# HANDOVER does so too and saves on the way, because some of this group will be gone soon.
GO_ON, SAVE, YIELD, HANDOVER, STOP, FAILED = 0, 1, 2, 3, 4, 5
_SHARE_EVERY = 10_000  # steps; an entry of the ledger takes half a kilobyte
_EVAL = -2  # the pseudo-step that keys the randomness of evaluation


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `loss` is the last step's, `metrics` the last evaluation's."""

    step: int
    steps: int
    epoch: float
    loss: float
    samples_s: float
    world: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: finished, yielded or stopped (asked to), failed (`why` says what;
    `diverged`: it would with these parameters anywhere)."""

    state: str
    step: int
    metrics: dict[str, float]
    why: str = ""
    fix: str = ""
    diverged: bool = False


class Loop:
    """A run's state in one process, and the steps over it."""

    def __init__(
        self,
        spec: RunSpec,
        recipe: Any,
        *,
        device: str = "cpu",
        clock: Clock = WALL,
        tell: Callable[[Progress], None] = lambda progress: None,
        asked: Callable[[], int] = lambda: GO_ON,
    ) -> None:
        self.spec, self.recipe, self.device = spec, recipe, torch.device(device)
        self.clock, self.tell, self.asked = clock, tell, asked
        self.exchange: Exchange | None = None
        self.saver: Saver | None = None
        self.step = -1  # nothing in memory yet
        self.metrics: dict[str, float] = {}
        self.losses: list[float] = []  # of the last steps
        self.trace: Callable[[int, float], None] | None = None
        self.after_evaluation: Callable[[Loop], None] | None = None
        self.segments: list[str] = []  # of the ledger, committed before those of `entries`
        self.entries: list[Entry] = []
        self.stepped_s: float | None = None  # when its last step was done, in Unix time
        self.joined_s = 0.0
        # FLOPs of a sample and of the device, where both are known.
        self.work: Mapping[str, float] | None = None
        self._evaluated = 0
        self._failure: BaseException | None = None
        self._settle()
        with blamed("recipe: dataset('train')"):
            self.train = recipe.dataset("train")
            rows = len(self.train)
        near = getattr(self.train, "locality", ())  # streamed data says which rows lie together
        self.plan = Plan(rows, spec.batch, _count(spec), spec.seed, *near)
        self.sampler = self.plan.sampler
        self.steps = spec.steps or self.sampler.steps_in(spec.epochs or 1)
        self.val = optional_split(recipe, "val")
        self.replica = _layout(spec)(spec, recipe, self.plan, self.train, self.device, self.steps)

    # --- setting up -----------------------------------------------------------------------------

    def _settle(self) -> None:
        if not self.spec.exact:
            return
        if self.device.type == "cpu":
            # Kernels split their sums over threads: another number of them is another rounding.
            torch.set_num_threads(1)
        else:
            # Before the first matrix product: cuBLAS reads it once. What has no such kernel raises.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    @property
    def model(self) -> torch.nn.Module:
        return self.replica.model

    @property
    def params(self) -> list[torch.nn.Parameter]:
        return self.replica.params

    # --- joining a group ------------------------------------------------------------------------

    def join(self, exchange: Exchange) -> None:
        """Agree with the group on where the run stands: the furthest worker's memory wins, else the
        last good checkpoint, else the beginning. Called again with every new group."""
        self.exchange = exchange
        self.replica.seat(exchange.world, exchange.rank)
        self.replica.slots = exchange.seats(self.plan.count, self.replica.slots)
        if self.replica.collective:  # who left took a shard along: there is only the checkpoint
            self.step = -1
            if self.saver:
                self.saver.meet(exchange.world)
        plans = exchange.gather((self.step, self._evaluated, vars(self.plan)))
        if any(plan != vars(self.plan) for *_, plan in plans):
            raise RunError(
                "the workers read data sets of different lengths", "pin data: name@version"
            )
        steps = [step for step, *_ in plans]
        furthest = max(steps)
        if furthest < 0:
            self._restore()
        elif any(step != furthest for step in steps):
            self._copy_from(steps.index(furthest))
        # All evaluate, or none does: who waits in an evaluation alone waits for ever.
        known = [evaluated for step, evaluated, _ in plans if step == furthest]
        self._evaluated = min(known) if furthest >= 0 else 0
        if furthest < 0 and self.step == 0:
            self._agree_on_first_weights()
        if self.spec.exact and self.step == 0 and exchange.rank == 0:
            self.replica.check_repeatable()
        self.joined_s = self.clock.now_s()

    @property
    def _place(self) -> tuple[int, int]:
        assert self.exchange is not None
        return self.exchange.world, self.exchange.rank

    def _restore(self) -> None:
        assert self.exchange is not None
        saver, first = self.saver, self.exchange.rank == 0
        found = in_turns(self.exchange, lambda: saver.find(self) if saver and first else None)[0]
        step = found or 0
        if self._restored_from_a_disk(step):
            return
        if saver and step:
            if self.replica.collective:  # it talks to the others itself
                saver.load(self, step)
            else:
                in_turns(self.exchange, lambda: saver.load(self, step))
        self.step = step

    def _restored_from_a_disk(self, behind: int) -> bool:
        """Whether a node had a newer checkpoint on its disk than the root's of step `behind`."""
        assert self.exchange is not None
        saver, rank = self.saver, self.exchange.rank
        if self.replica.collective:  # of shards a disk has only some
            return False
        steps = in_turns(self.exchange, lambda: saver.staged(behind) if saver else 0)
        if not any(steps):
            return False
        source = steps.index(max(steps))
        in_turns(
            self.exchange, lambda: saver.load_staged(self) if saver and rank == source else None
        )
        self._copy_from(source)
        return True

    def _copy_from(self, source: int) -> None:
        """Everything that a step changes, from the memory of `source`: no disk is read."""
        assert self.exchange is not None
        mine = None
        # What its state names must be in the root before others name it.
        self._settle_saves()
        if self.exchange.rank == source:
            mine = self.snapshot()
        state = self.exchange.hand(mine, source)
        if mine is None:
            self.adopt(state)

    def go_on_from(self, step: int, about: Mapping[str, Any]) -> None:
        """Stand where a checkpoint stands whose tensors the replica has taken."""
        self.step, self.metrics = step, dict(about["metrics"])
        self.segments, self.entries = list(about["ledger"]), []

    def _agree_on_first_weights(self) -> None:
        """What a recipe draws for its weights is seeded, but it may draw from anywhere."""
        assert self.exchange is not None
        if self.replica.collective or len(set(self.exchange.gather(_glimpse(self.params)))) == 1:
            return
        if self.spec.exact:
            raise RecipeError(
                "recipe: model() has other first weights in every process",
                "draw them from torch, numpy or random, which are seeded, or set exact: false",
            )
        self._copy_from(0)

    def rehearse(self) -> None:
        """Do once what takes long the first time, before others wait for it. RecipeError."""
        if not self.replica.collective:  # its model is cut only when there is a group
            self.replica.rehearse()

    def snapshot(self) -> dict[str, Any]:
        """A copy of the state between two steps, on the CPU."""
        return {
            "step": self.step,
            **self.replica.state(),
            "metrics": dict(self.metrics),
            "segments": list(self.segments),
            "entries": [(e.step, list(e.prints)) for e in self.entries],
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot. RunError when it is another model's."""
        self.replica.load(state)
        self.step = int(state["step"])
        self.metrics = dict(state["metrics"])
        self.segments = list(state["segments"])
        self.entries = [Entry(s, tuple(p)) for s, p in state["entries"]]

    # --- running --------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Step until the end, or until somebody asks to stop. PeerLost leaves the state intact."""
        assert self.exchange is not None
        self.model.train()
        since, done, flag = self.clock.monotonic_s(), 0, GO_ON
        while True:
            if self._due(self.step) and self._evaluated < self.step:
                self._evaluate()
                self._evaluated = self.step
                if self.after_evaluation:
                    self.after_evaluation(self)
            if done:
                self._tell(self.losses[-1], done, self.clock.monotonic_s() - since)
            if self._saves and self.step > 0:
                self._save(flag == SAVE or self.step == self.steps)
            if self.step >= self.steps:
                return self._finish()
            if self.step and self.step % _SHARE_EVERY == 0:
                self._forget_entries()
            loss, flag = self._one_step()
            if flag == FAILED:
                return self._stopped(flag)
            self.step += 1
            done += 1
            self.stepped_s = self.clock.now_s()
            self.losses = [*self.losses[-99:], loss]
            if self.trace:
                self.trace(self.step, loss)
            if flag >= YIELD:  # the step counts: nobody computes it again
                return self._stopped(flag)

    def _one_step(self) -> tuple[float, int]:
        assert self.exchange is not None
        world, rank = self._place
        start, stop = self.plan.rows_of(self.step, world, rank)
        indices = self.sampler.indices(self.step, start, stop)
        if ahead := getattr(self.train, "ahead", None):
            ahead(self.sampler.indices(self.step + 1, start, stop))
        flag = FAILED if self._failure else max(self.asked(), self._wish())
        if not self._failure or self.replica.collective:  # the others cannot compute alone
            try:
                self.replica.compute(self.step, indices, start)
            except (RecipeError, ArithmeticError) as error:
                if self.replica.collective and world > 1:
                    raise  # the others wait in the model's own exchange, where no word can reach them
                self._failure, flag = error, FAILED
        total, headers = self.exchange.sum(
            self.plan.count, self.replica.slots, (fingerprint(indices), flag)
        )
        flag = max(h[1] for h in headers)
        loss = float(total[-1]) / self.plan.count
        if flag < FAILED and not math.isfinite(loss):
            self._failure, flag = diverged(self.step, f"the loss became {loss}"), FAILED
        if flag < FAILED:
            try:
                self.replica.apply(self.step, total)
            except RunError as error:  # of everybody's, for all have the same gradient
                self._failure = error
                return loss, FAILED
            self.entries.append(Entry(self.step, tuple(h[0] for h in headers)))
        return loss, flag

    def _forget_entries(self) -> None:
        """What the worker that saves has put into the root, the others need no longer keep in memory."""
        assert self.exchange is not None
        if self.replica.collective:
            return  # all of them save
        mine = self.saver.settled if self.saver else (0, [])
        step, segments = self.exchange.gather(mine)[0]
        if self.exchange.rank and self.entries and self.entries[0].step < step:
            self.segments = list(segments)
            self.entries = [e for e in self.entries if e.step >= step]

    # --- what happens between steps -------------------------------------------------------------

    def _due(self, step: int) -> bool:
        return (
            self.val is not None
            and step > 0
            and (step % self.evaluate_every == 0 or step == self.steps)
        )

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations: once an epoch, but at most about twenty times a run."""
        if isinstance(self.spec.evaluate, int):
            return self.spec.evaluate
        return max(1, -(-self.steps // 20), -(-self.plan.rows // self.plan.batch))

    def _evaluate(self, split: str = "val", data: Any = None) -> None:
        assert self.exchange is not None
        prefix = "" if split == "val" else f"{split}_"
        found = evaluate(
            self.recipe, self.model, self.val if data is None else data, self.exchange, self.device,
            together=self.replica.collective, key=mix(self.spec.seed, _EVAL, self.step),
        )  # fmt: skip
        self.metrics |= {
            (f"{split}_loss" if name == "loss" else prefix + name): v for name, v in found.items()
        }
        self.model.train()

    def _tell(self, loss: float, done: int, elapsed_s: float) -> None:
        assert self.exchange is not None
        rate = done * self.plan.batch / elapsed_s if elapsed_s > 0 else 0.0
        self.tell(
            Progress(
                self.step, self.steps, self.sampler.epoch_at(self.step), loss, rate,
                self.exchange.world, self.metrics,
            )
        )  # fmt: skip

    @property
    def _saves(self) -> bool:
        """Whether this worker writes: the first one for all, or everybody the own shards."""
        assert self.exchange is not None
        return self.saver is not None and (self.replica.collective or self.exchange.rank == 0)

    def _wish(self) -> int:
        """Where saving takes all workers, the first one says when."""
        assert self.exchange is not None
        if not (self.replica.collective and self.saver and self.exchange.rank == 0):
            return GO_ON
        return SAVE if self.saver.due(self) else GO_ON

    def _save(self, now: bool) -> None:
        assert self.saver is not None
        try:
            self.saver.offer(self, now)
        except StorageUnavailable as error:
            # Told to the others with the next gradient, so that all stop at the same step.
            self._failure = error

    def _settle_saves(self) -> None:
        """Until what anybody saves in the background is written; a large one takes minutes."""
        assert self.exchange is not None
        if saver := self.saver:
            in_turns(self.exchange, saver.settle)

    def _stopped(self, flag: int) -> Outcome:
        assert self.exchange is not None
        if flag == FAILED:
            faults = self.exchange.gather(_fault(self._failure))
            why, fix = next((f for f in faults if f[0]), ("a worker failed", ""))
            if self.saver:
                self.saver.close()
            diverged = isinstance(self._failure, Diverged)
            return Outcome("failed", self.step, self.metrics, why, fix, diverged)
        if self._saves and (flag == HANDOVER or self.replica.collective):
            self._save(now=True)
        if flag in (YIELD, HANDOVER):
            if self.saver and self.replica.collective:
                self.saver.settle()  # the next group reads it
            return Outcome("yielded", self.step, self.metrics)
        if self.saver and self._saves:
            self.saver.offer(self, now=True)
            self.saver.close()
        return Outcome("stopped", self.step, self.metrics)

    def _finish(self) -> Outcome:
        assert self.exchange is not None
        test = optional_split(self.recipe, "test")
        if test is not None:
            self._evaluate("test", test)
        self._settle_saves()
        try:
            if self._failure:
                raise self._failure
            if self.saver and self._saves:
                self.saver.close()
        except (StorageUnavailable, RunError) as error:
            self._failure = error
        faults = [f for f in self.exchange.gather(_fault(self._failure)) if f[0]]
        if faults:
            diverged = isinstance(self._failure, Diverged)
            why, fix = faults[0]
            return Outcome("failed", self.step, self.metrics, why, fix, diverged)
        return Outcome("finished", self.step, self.metrics)


def _glimpse(params: list[torch.nn.Parameter]) -> bytes:
    """The first numbers of every parameter: enough to tell two draws apart."""
    digest = hashlib.sha256()
    for p in params:
        digest.update(p.detach().flatten()[:1024].cpu().numpy().tobytes())
    return digest.digest()


def _layout(spec: RunSpec) -> type[Replica]:
    if spec.layout == "ddp":
        return Replica
    from sundog.runs.sharded import Sharded

    return Sharded


def optional_split(recipe: Any, split: str) -> Any:
    """A split's rows, or None where the recipe has none of that name."""
    try:
        with blamed(f"recipe: dataset({split!r})"):
            found = recipe.dataset(split)
            return found if found is not None and len(found) else None
    except NotFound:
        return None
    except RecipeError as error:
        if isinstance(error.__cause__, KeyError):
            return None
        raise


def _count(spec: RunSpec) -> int:
    try:
        micro = spec.micro_batch if isinstance(spec.micro_batch, int) else None
        return micro_batches(spec.batch, micro, spec.workers.high or 1, spec.exact)
    except ValueError as error:
        raise RunError(str(error)) from None


def _fault(error: BaseException | None) -> tuple[str, str]:
    if error is None:
        return "", ""
    return str(getattr(error, "message", error)), str(getattr(error, "fix", ""))
