"""One trial of a sweep, inside its own process: the training loop alone, reporting as it evaluates.

Goes on from its own last checkpoint, or from another trial's when the scheduler says so, and keeps
the state of its best evaluation, so the winner can be registered. Decides nothing.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sundog.errors import NotFound, RunError, SundogError
from sundog.runs.checkpoint import Checkpoint, Checkpoints
from sundog.spec.run import RunSpec
from sundog.spec.sweep import SweepSpec
from sundog.storage.root import Root
from sundog.storage.runs import RunFolder

FORMAT = 1
_MARK = "where.json"


def trial_spec(spec: SweepSpec, values: dict[str, Any], repeat: int = 0) -> RunSpec:
    """The base run with a trial's values: recipe parameters, or `run.<field>` of the run itself."""
    fields = {k.removeprefix("run."): v for k, v in values.items() if k.startswith("run.")}
    params = {k: v for k, v in values.items() if not k.startswith("run.")}
    base = spec.run.model_dump(by_alias=True)
    seed = base["seed"] + repeat
    return RunSpec.model_validate(
        {
            **base, "seed": seed, **fields, "params": {**base["params"], **params},
            "workers": 1, "register": None,
        }
    )  # fmt: skip


def trial_prefix(run_id: str, name: str) -> str:
    return f"runs/{run_id}/trials/{name}"


def run_trial(values: dict[str, Any], job: dict[str, Any]) -> None:
    """A Tune function trainable. `values` are the trial's; `job` is what `sweep.py` made.

    An error that would come again is reported as the trial's last word, so that Tune retries only
    what was lost.
    """
    if job["directory"] and job["directory"] not in sys.path:
        sys.path.insert(0, job["directory"])
    os.environ.update(job["environment"])
    from ray import tune

    from sundog.runs.worker import WorkerLog

    name, folder = tune.get_context().get_trial_id(), job["folder"]
    spec = SweepSpec.model_validate(job["sweep"])
    with WorkerLog(folder, name):
        try:
            _run(spec, folder, name, values, job)
        except SundogError as error:
            fatal = isinstance(error, NoMetric)
            tune.report({"fault": error.message, "fix": error.fix, "fatal": fatal, "node": _node()})


class NoMetric(RunError):
    """No trial will ever report the sweep's metric."""


def _run(
    spec: SweepSpec, folder: RunFolder, name: str, values: dict[str, Any], job: dict[str, Any]
) -> None:
    run = trial_spec(spec, values, job["repeats"].get(name, 0))
    kept = Kept(folder.root, trial_prefix(folder.run_id, name), keep=4 if spec.scheduler.pbt else 2)
    source = _source(kept)
    function = plain_function(run.recipe, job["directory"])
    if function is not None:
        _call(function, spec, run, kept, source, job)
        return
    from sundog.runs.exchange import Alone
    from sundog.runs.loop import Loop
    from sundog.runs.worker import open_recipe

    loop = Loop(run, open_recipe(folder.root, run, job["data"], job["directory"]))
    saver = _saver(run, kept, source)
    loop.saver = saver
    loop.after_evaluation = Reporter(spec, kept, saver)
    loop.join(Alone())
    outcome = loop.run()
    if outcome.state == "failed":
        raise RunError(outcome.why, outcome.fix)
    saver.close()


class Kept:
    """What a trial leaves in the root: checkpoints, and which of them is the last and the best."""

    def __init__(self, root: Root, prefix: str, keep: int = 2) -> None:
        self.root, self.prefix = root, prefix
        self.checkpoints = _PinnedCheckpoints(root, f"{prefix}/checkpoints", keep)
        self.last: int | None = None
        self.best: int | None = None
        self.best_value: float | None = None
        self._read()

    def _read(self) -> None:
        try:
            kept = json.loads(self.root.read(f"{self.prefix}/state.json"))
        except (NotFound, ValueError):
            return
        self.last, self.best, self.best_value = kept["last"], kept["best"], kept["best_value"]
        self.checkpoints.pinned = self.best

    def improved(self, value: float, mode: str) -> bool:
        sign = 1 if mode == "max" else -1
        return self.best_value is None or sign * value > sign * self.best_value

    def note(self, step: int, value: float | None) -> None:
        """The checkpoint of `step` is the last one; with a `value`, the best as well."""
        self.last = step
        if value is not None:
            self.best, self.best_value = step, value
            self.checkpoints.pinned = step
        kept = {
            "format": FORMAT, "last": self.last, "best": self.best, "best_value": self.best_value
        }  # fmt: skip
        self.root.write(f"{self.prefix}/state.json", json.dumps(kept).encode())

    def best_checkpoint(self) -> Checkpoint | None:
        return None if self.best is None else self.checkpoints.read(self.best)


class _PinnedCheckpoints(Checkpoints):
    """Never drops the pinned step."""

    pinned: int | None = None

    def retain(self) -> None:
        old = [s for s in self.steps()[: -self._keep] if s != self.pinned]
        for step in old:
            self.drop(step)


def _source(kept: Kept) -> tuple[Kept, int] | None:
    """Whose checkpoint to go on from: what Tune restores (perhaps another trial's), else our own."""
    from ray import tune

    mark = tune.get_checkpoint()
    if mark is not None:
        with mark.as_directory() as folder:
            where = json.loads(Path(folder, _MARK).read_text())
        if where["prefix"] != kept.prefix:
            return Kept(kept.root, where["prefix"]), where["step"]
    return None if kept.last is None else (kept, kept.last)


def _saver(run: RunSpec, kept: Kept, source: tuple[Kept, int] | None) -> Any:
    from sundog.runs.interval import Cadence
    from sundog.runs.saver import Saver

    class TrialSaver(Saver):
        """Goes on from `source`, with the optimizer's settings of this trial's own values."""

        def find(self, loop: Any) -> tuple[int, str] | None:
            if source is None:
                return None
            where, step = source
            # Later ones were saved between two reports, unless they are of a life left behind.
            later = max(step, where.best or 0) if where is kept else float("inf")
            good = [s for s in where.checkpoints.steps() if s <= step or s > later]
            for candidate in reversed(good):
                try:
                    where.checkpoints.read(candidate)
                    return candidate, ""
                except SundogError as error:
                    print(f"{error.message}; going on from the one before", flush=True)
            return None

        def load(self, loop: Any, step: int) -> None:
            assert source is not None
            groups = loop.replica.optimizer.param_groups
            mine = [{k: v for k, v in g.items() if k != "params"} for g in groups]
            own, self.checkpoints = self.checkpoints, source[0].checkpoints
            try:
                super().load(loop, step)
            finally:
                self.checkpoints = own
            if source[0].prefix != kept.prefix:
                groups = loop.replica.optimizer.param_groups
                for group, settings in zip(groups, mine, strict=True):
                    group.update(settings)
                self._saved_step = -1  # this trial has not saved it yet
                for later in [s for s in own.steps() if s > step and s != kept.best]:
                    own.drop(later)  # of a life that it has left behind
                print(f"going on from step {step} of {source[0].prefix.rsplit('/', 1)[-1]}")

    saver = TrialSaver(kept.root, kept.prefix, keep=2, cadence=Cadence(run.checkpoint.every))
    saver.checkpoints = kept.checkpoints
    return saver


class Reporter:
    """Called after each evaluation: keeps the best state, then reports to Tune, which may end us."""

    def __init__(self, spec: SweepSpec, kept: Kept, saver: Any) -> None:
        self._spec, self._kept, self._saver = spec, kept, saver

    def __call__(self, loop: Any) -> None:
        metrics = dict(loop.metrics)
        value = _value(self._spec, metrics)
        better = self._kept.improved(value, self._spec.mode)
        # A trial that may be paused, or copied by another, has a checkpoint at each report.
        now = better or pauses(self._spec)
        before = self._saver._saved_step
        self._saver.offer(loop, now=now)
        if self._saver._saved_step != before:
            self._saver.close()
            self._kept.note(loop.step, value if better else None)
        number = -(-loop.step // loop.evaluate_every)
        mark = {"prefix": self._kept.prefix, "step": loop.step} if pauses(self._spec) else None
        send(metrics, number, loop.step, loop.steps, mark)


def pauses(spec: SweepSpec) -> bool:
    """Whether the scheduler pauses trials, which then need a checkpoint with every report."""
    return bool(spec.scheduler.halving or spec.scheduler.hyperband or spec.scheduler.pbt)


def send(
    metrics: dict[str, float], number: int, step: int, steps: int, mark: dict[str, Any] | None
) -> None:
    """A report to Tune; returns when the trial may go on. `mark` says where its checkpoint lies."""
    from ray import tune

    result = {
        **metrics, "measured": dict(metrics), "report": number, "step": step, "steps": steps,
        "node": _node(),
    }  # fmt: skip
    if mark is None:
        tune.report(result)
        return
    with tempfile.TemporaryDirectory(prefix="sundog-trial-") as folder:
        Path(folder, _MARK).write_text(json.dumps(mark))
        tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _value(spec: SweepSpec, metrics: dict[str, float]) -> float:
    missing = [m for m in (spec.metric, *spec.also) if m not in (*metrics, "usd", "seconds")]
    if missing:
        raise NoMetric(
            f"the recipe reports no {missing[0]!r}, only {', '.join(sorted(metrics))}",
            "name one of these as the sweep's metric",
        )
    return float(metrics[spec.metric])


# --- plain functions ----------------------------------------------------------------------------


def plain_function(recipe: str, directory: str | None) -> Callable[..., Any] | None:
    """The function that `recipe` names, when it is `trial(params, report)` and no recipe."""
    from sundog.runs.recipe import resolve

    found = resolve(recipe, directory)
    if not inspect.isfunction(found):
        return None
    return found if list(inspect.signature(found).parameters)[:2] == ["params", "report"] else None


class Report:
    """What a plain function reports through: `report({"loss": 0.1}, state=b"…")`.

    `state` is what it needs to go on; an interrupted trial finds the last one in `report.state`.
    """

    def __init__(
        self, spec: SweepSpec, run: RunSpec, kept: Kept, source: tuple[Kept, int] | None
    ) -> None:
        self._spec, self._run, self._kept = spec, run, kept
        self.seed, self.data = run.seed, run.data
        self.number, self.state = 0, b""
        if source is not None:
            where, step = source
            self.number, self.state = step, where.checkpoints.read(step).parts["state"]

    def __call__(self, metrics: dict[str, float], state: bytes | None = None) -> None:
        value = _value(self._spec, metrics)
        self.number += 1
        if state is not None:
            self._kept.checkpoints.save(self.number, {"state": state}, {"metrics": metrics})
            better = self._kept.improved(value, self._spec.mode)
            self._kept.note(self.number, value if better else None)
        elif pauses(self._spec):
            raise RunError(
                f"scheduler {self._spec.scheduler.name} pauses trials, so each report needs a state",
                "report(metrics, state=bytes), or a scheduler that does not pause: asha, median",
            )
        steps = self._run.steps or int(self._run.epochs or 1)
        mark = {"prefix": self._kept.prefix, "step": self.number} if pauses(self._spec) else None
        send(dict(metrics), self.number, self.number, steps, mark)


def _call(
    function: Callable[..., Any], spec: SweepSpec, run: RunSpec, kept: Kept,
    source: tuple[Kept, int] | None, job: dict[str, Any],
) -> None:  # fmt: skip
    from sundog.runs.recipe import blamed

    os.environ.setdefault("SUNDOG_ROOT", kept.root.url)
    with blamed(f"{run.recipe}: the trial"):
        function(dict(run.params), Report(spec, run, kept, source))
