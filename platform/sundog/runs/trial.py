"""One trial of a sweep, inside its own process: the training loop, reporting as it evaluates.

Goes on from its own last checkpoint, or from another trial's when the scheduler says so, and keeps
the state of its best evaluation, so the winner can be registered. Decides nothing. A loop on several
workers is `trial_group.py`'s.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sundog.errors import Diverged, RunError, SundogError
from sundog.runs.trial_kept import Kept, trial_prefix
from sundog.spec.run import RunSpec
from sundog.spec.sweep import SweepSpec
from sundog.storage.runs import RunFolder

_MARK = "where.json"


def trial_spec(spec: SweepSpec, values: dict[str, Any], repeat: int = 0) -> RunSpec:
    """The base run with a trial's values: recipe parameters, or `run.<field>` of the run itself."""
    fields = {k.removeprefix("run."): v for k, v in values.items() if k.startswith("run.")}
    params = {k: v for k, v in values.items() if not k.startswith("run.")}
    base = spec.run.model_dump(by_alias=True)
    seed = base["seed"] + repeat
    return RunSpec.model_validate(
        {**base, "seed": seed, **fields, "params": {**base["params"], **params}, "register": None}
    )


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
            tune.report(
                {"fault": error.message, "fix": error.fix, "fatal": isinstance(error, NoMetric),
                 "diverged": isinstance(error, Diverged), "nodes": [_node()]}
            )  # fmt: skip


class NoMetric(RunError):
    """No trial will ever report the sweep's metric."""


def _run(
    spec: SweepSpec, folder: RunFolder, name: str, values: dict[str, Any], job: dict[str, Any]
) -> None:
    run = trial_spec(spec, values, job["repeats"].get(name, 0))
    kept = kept_by(spec, folder, name)
    kept.take_over(_mark(kept))
    function = plain_function(run.recipe, job["directory"])
    if function is not None:
        os.environ.setdefault("SUNDOG_ROOT", kept.root.url)
        _call(function, run, Report(spec, run, kept), _unheard(name, job))
        return
    if job["workers"] > 1:
        from sundog.runs.trial_group import run_group

        run_group(spec, run, folder, name, job)
        return
    from sundog.runs.exchange import Alone

    loop = loop_of_trial(run, kept, job)
    loop.after_evaluation = Reporter(spec, kept, loop.saver)
    loop.join(Alone())
    outcome = loop.run()
    if outcome.state == "failed":
        raise (Diverged if outcome.diverged else RunError)(outcome.why, outcome.fix)
    loop.saver.close()


def loop_of_trial(run: RunSpec, kept: Kept, job: dict[str, Any], **more: Any) -> Any:
    """A loop that begins where the trial left off, not yet joined; `more` is for the loop itself."""
    from sundog.runs.initial import load_weights
    from sundog.runs.loop import Loop
    from sundog.runs.worker import device_of, open_recipe

    recipe = open_recipe(kept.root, run, job["data"], job["directory"])
    loop = Loop(run, recipe, device=device_of(run), **more)
    if job["init_from"]:
        load_weights(kept.root, job["init_from"], loop.model)
    loop.saver = saver_of_trial(run, kept)
    return loop


def kept_by(spec: SweepSpec, folder: RunFolder, name: str) -> Kept:
    """What the trial of this name has left so far."""
    return Kept(folder.root, trial_prefix(folder.run_id, name), keep=4 if spec.scheduler.pbt else 2)


def _mark(kept: Kept) -> dict[str, Any] | None:
    """What Tune restores: where a checkpoint lies, perhaps another trial's."""
    from ray import tune

    mark = tune.get_checkpoint()
    if mark is None:
        return None
    with mark.as_directory() as folder:
        where: dict[str, Any] = json.loads(Path(folder, _MARK).read_text())
    return where


def saver_of_trial(run: RunSpec, kept: Kept) -> Any:
    """A saver that goes on from `kept.source()`."""
    from sundog.runs.interval import Cadence
    from sundog.runs.saver import Saver

    source = kept.source()

    class TrialSaver(Saver):
        """Goes on from `source`, with the optimizer's settings of this trial's own values."""

        def find(self, loop: Any) -> int | None:
            if source is None:
                return None
            where, step = source
            # Later ones were saved between two reports, unless they are of a life left behind.
            later = max(step, where.best or 0) if where is kept else float("inf")
            good = [s for s in where.checkpoints.steps() if s <= step or s > later]
            for candidate in reversed(good):
                try:
                    where.checkpoints.read(candidate)
                    return candidate
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
                if loop.exchange is not None and loop.exchange.rank != 0:
                    return
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
        send(self._spec, **self.keep(loop), nodes=[_node()])

    def keep(self, loop: Any) -> dict[str, Any]:
        """Keep the state if it is worth it; what there is to report of it.

        NoMetric when that is not what the sweep looks at."""
        metrics = numbers(loop.metrics)
        value = value_of(self._spec, metrics)
        better = self._kept.improved(value, self._spec.mode)
        # A trial that may be paused, or copied by another, has a checkpoint at each report.
        now = better or pauses(self._spec)
        before = self._saver._saved_step
        if not better and before != loop.step:
            self._kept.make_room(loop.step)
        self._saver.offer(loop, now=now)
        if self._saver._saved_step != before:
            self._saver.close()
            self._kept.note(loop.step, value if better else None)
        return {
            "metrics": metrics, "number": -(-loop.step // loop.evaluate_every),
            "step": loop.step, "steps": loop.steps, "prefix": self._kept.prefix,
        }  # fmt: skip


def _unheard(name: str, job: dict[str, Any]) -> int:
    """The number of the first report of this trial that no driver wrote down, as far as is known.

    A state is saved before its report is sent: a driver killed in between knows the state only.
    A trial that Tune itself goes on with has told everything.
    """
    from ray import tune

    return sys.maxsize if tune.get_checkpoint() is not None else job["reported"].get(name, 0) + 1


def pauses(spec: SweepSpec) -> bool:
    """Whether the scheduler pauses trials, which then need a checkpoint with every report."""
    return bool(spec.scheduler.halving or spec.scheduler.hyperband or spec.scheduler.pbt)


def send(
    spec: SweepSpec, metrics: dict[str, float], number: int, step: int, steps: int, prefix: str,
    nodes: list[str],
) -> None:  # fmt: skip
    """A report to Tune; returns when the trial may go on. `prefix` says where its checkpoint lies,
    `nodes` where its workers are, one each."""
    from ray import tune

    result = {
        **metrics, "measured": dict(metrics), "report": number, "step": step, "steps": steps,
        "nodes": nodes,
    }  # fmt: skip
    if not pauses(spec):
        tune.report(result)
        return
    with tempfile.TemporaryDirectory(prefix="sundog-trial-") as folder:
        Path(folder, _MARK).write_text(json.dumps({"prefix": prefix, "step": step}))
        tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def numbers(metrics: Any) -> dict[str, float]:
    """What was reported, as plain numbers. RunError names what is none."""
    if not isinstance(metrics, Mapping):
        raise RunError(
            f"a report of a {type(metrics).__name__}; it must be a dict of numbers",
            "report({'accuracy': 0.9})",
        )
    out: dict[str, float] = {}
    for name, value in metrics.items():
        number = _number(value)
        if number is None:
            raise RunError(
                f"the report has {name}: {str(value)[:60]!r}, which is no number",
                "report numbers only, and print the rest: `sundog logs` shows it",
            )
        out[str(name)] = number
    return out


def _number(value: Any) -> float | None:
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def value_of(spec: SweepSpec, metrics: dict[str, float]) -> float:
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

    def __init__(self, spec: SweepSpec, run: RunSpec, kept: Kept) -> None:
        self._spec, self._run, self._kept = spec, run, kept
        self.seed, self.data = run.seed, run.data
        self.number, self.state = 0, b""
        self._metrics: dict[str, float] = {}
        source = kept.source()
        if source is not None:
            where, step = source
            found = where.checkpoints.read(step)
            self.number, self.state = step, found.parts["state"]
            if where is kept:
                kept_with = found.about.get("metrics", {})
                self._metrics = {n: v for n, v in kept_with.items() if _number(v) is not None}

    def say_again(self, unheard: int) -> None:
        """Report what the state was saved with, where its number is `unheard` or later."""
        if self._spec.metric in self._metrics and self.number >= unheard:
            self._send(self._metrics)

    def __call__(self, metrics: dict[str, float], state: bytes | None = None) -> None:
        metrics = numbers(metrics)  # before anything is kept that would be said again
        value = value_of(self._spec, metrics)
        self.number += 1
        if state is not None:
            better = self._kept.improved(value, self._spec.mode)
            if not better:
                self._kept.make_room(self.number)
            self._kept.checkpoints.save(self.number, {"state": state}, {"metrics": metrics})
            self._kept.note(self.number, value if better else None)
        elif pauses(self._spec):
            raise RunError(
                f"scheduler {self._spec.scheduler.name} pauses trials, so each report needs a state",
                "report(metrics, state=bytes), or a scheduler that does not pause: asha, median",
            )
        self._send(metrics)

    def _send(self, metrics: dict[str, float]) -> None:
        steps = self._run.steps or int(self._run.epochs or 1)
        send(
            self._spec, dict(metrics), self.number, self.number, steps, self._kept.prefix, [_node()]
        )


def _call(function: Callable[..., Any], run: RunSpec, report: Report, unheard: int) -> None:
    from sundog.runs.recipe import blamed

    report.say_again(unheard)
    with blamed(f"{run.recipe}: the trial"):
        function(dict(run.params), report)
