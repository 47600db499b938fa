"""A sweep: many short runs of one recipe on Ray Tune, each by the same loop at world size one.

Each trial is a function in its own process that steps, evaluates and saves its best; Tune decides
which go on. Trains nothing here.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sundog import telemetry
from sundog.errors import RunError, SundogError
from sundog.runs import place
from sundog.runs.checkpoint import Checkpoints
from sundog.runs.driver import driving, interruptible, say
from sundog.runs.lineage import lineage
from sundog.runs.train import driver_recipe, pin_data, secret_environment, worker_resources
from sundog.runs.trial import run_trial
from sundog.runs.worker import open_recipe
from sundog.spec.run import RunSpec
from sundog.spec.sweep import Asha, Choice, Int, Log, SweepSpec, Uniform
from sundog.storage.runs import RunFolder

if TYPE_CHECKING:
    from sundog.storage.models import ModelVersion


@dataclass(frozen=True)
class Trial:
    """A row of the table. `value` is its best report; `why` says what ended it."""

    name: str
    params: dict[str, Any]
    value: float | None
    step: int
    steps: int
    state: str  # finished | stopped | failed
    why: str
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Swept:
    run_id: str
    trials: tuple[Trial, ...]
    best: Trial
    version: ModelVersion | None = None


def run_sweep(spec: SweepSpec, folder: RunFolder) -> Swept:
    """Search to the end. Raises RunError when no trial reported anything."""
    with driving(folder, "sweep", metric=spec.metric, mode=spec.mode) as done:
        data = pin_data(folder.root, spec.run, folder.record().get("data"))
        folder.update(data=data, spec=spec.model_dump(mode="json"))
        place.check_reach(folder.root)
        place.check_fit(1, worker_resources(spec.run))
        os.environ.update(secret_environment(spec.run))
        driver_recipe(folder.root, spec.run, data, registers=True)  # fails here, before any trial
        trials = _search(spec, folder, data)
        done |= {"trials": [_row(t) for t in trials]}
        best = _best(trials, spec)
        for line in table(trials, best, spec):
            say(folder, line)
        done |= {"metrics": best.metrics, "best": best.name, "params": best.params}
        version = _register(spec, folder, data, best)
        if version is not None:
            done["model"] = version.ref
    return Swept(folder.run_id, tuple(trials), best, version)


def trial_spec(spec: SweepSpec, values: dict[str, Any]) -> RunSpec:
    """The base run with a trial's values: recipe parameters, or `run.<field>` of the run itself."""
    fields = {k.removeprefix("run."): v for k, v in values.items() if k.startswith("run.")}
    params = {k: v for k, v in values.items() if not k.startswith("run.")}
    base = spec.run.model_dump(by_alias=True)
    return RunSpec.model_validate(
        {**base, **fields, "params": {**base["params"], **params}, "workers": 1, "register": None}
    )


def trial_folder(run_id: str, name: str) -> str:
    return f"runs/{run_id}/trials/{name}"


def _search(spec: SweepSpec, folder: RunFolder, data: str | None) -> list[Trial]:
    # Tune's own tables and event files: ours say the same, once.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    from ray import tune

    resources = {
        k.lower() if k != "memory" else k: v for k, v in worker_resources(spec.run).items()
    }
    fits = max(1, place.capacity(worker_resources(spec.run)))
    concurrent = fits if spec.concurrent == "auto" else min(spec.concurrent, fits)
    config = {
        "sweep": spec.model_dump(mode="json"), "folder": folder, "data": data,
        "directory": place.working_directory(), "environment": secret_environment(spec.run),
    }  # fmt: skip
    if spec.max_usd is not None:
        say(folder, "max_usd is not watched yet: bound the sweep by trials or max_time")
    say(
        folder, f"{folder.run_id} · {spec.trials} trials of {spec.run.recipe}, {concurrent} at once"
    )
    trainable = tune.with_resources(tune.with_parameters(run_trial, job=config), resources)
    with tempfile.TemporaryDirectory(prefix="sundog-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space=_space(spec),
            tune_config=tune.TuneConfig(
                metric=spec.metric, mode=spec.mode, reuse_actors=True,
                num_samples=1 if spec.searcher == "grid" else spec.trials,
                scheduler=_scheduler(spec), search_alg=_searcher(spec, concurrent),
                time_budget_s=spec.max_time,
                trial_name_creator=_trial_name, trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=folder.run_id, storage_path=scratch, verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                callbacks=[Shown(folder, spec)],
            ),
        )  # fmt: skip
        results = interruptible(tuner.fit)
        return _trials(spec, folder, results)


def _space(spec: SweepSpec) -> dict[str, Any]:
    from ray import tune

    def domain(wish: Uniform | Log | Int | Choice) -> Any:
        match wish:
            case Uniform(uniform=(low, high)):
                return tune.uniform(low, high)
            case Log(log=(low, high)):
                return tune.loguniform(low, high)
            case Int(int_=(low, high)):
                return tune.randint(low, high + 1)
            case Choice(choice=values) if spec.searcher == "grid":
                return tune.grid_search(list(values))
            case Choice(choice=values):
                return tune.choice(list(values))

    return {name: domain(wish) for name, wish in spec.space.items()}


def _scheduler(spec: SweepSpec) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if not isinstance(spec.scheduler, Asha):
        return FIFOScheduler()
    options = spec.scheduler.asha
    return ASHAScheduler(
        time_attr="training_iteration", grace_period=options.grace,
        reduction_factor=options.eta, brackets=options.brackets, max_t=10**9,
    )  # fmt: skip


def _searcher(spec: SweepSpec, concurrent: int) -> Any:
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if spec.searcher != "optuna":
        return BasicVariantGenerator(random_state=spec.seed, max_concurrent=concurrent)
    try:
        from ray.tune.search.optuna import OptunaSearch

        return ConcurrencyLimiter(OptunaSearch(seed=spec.seed), max_concurrent=concurrent)
    except ImportError:
        raise SundogError(
            "searcher: optuna is not installed", "pip install 'sundog[sweeps]'"
        ) from None


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.trial_id.rsplit('_', 1)[-1]}"


def _trials(spec: SweepSpec, folder: RunFolder, results: Any) -> list[Trial]:
    out = []
    for result in results:
        last = result.metrics or {}
        name = last.get("trial") or str(result.path).rsplit("/", 1)[-1]
        reached, steps = int(last.get("step", 0)), int(last.get("steps", 0))
        if result.error is not None:
            state, why = "failed", _why(result.error)
        elif reached < steps or not steps:
            state, why = "stopped", _cut(spec, last)
        else:
            state, why = "finished", "all its steps"
        metrics = json.loads(last["best_metrics"]) if last.get("best_metrics") else {}
        out.append(
            Trial(
                name, dict(result.config or {}), metrics.get(spec.metric), reached, steps, state, why,
                metrics, float(last.get("time_total_s", 0.0)),
            )
        )  # fmt: skip
        folder.event(telemetry.TRIAL_FINISHED, **_row(out[-1]))
    return sorted(out, key=lambda t: t.name)


def _row(trial: Trial) -> dict[str, Any]:
    row = dict(vars(trial))
    return {"trial": row.pop("name"), **row}


def _cut(spec: SweepSpec, last: dict[str, Any]) -> str:
    if isinstance(spec.scheduler, Asha):
        rung = int(last.get("training_iteration", 0))
        return f"not in the best 1/{spec.scheduler.asha.eta:g} after {rung} reports"
    return "the sweep's time was over"


def _why(error: BaseException) -> str:
    cause: Any = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    for line in reversed(lines):
        if "Error" in line and ":" in line:
            return line.split("errors.")[-1].strip()
    return lines[-1].strip() if lines else type(error).__name__


def _best(trials: list[Trial], spec: SweepSpec) -> Trial:
    measured = [t for t in trials if t.value is not None]
    if not measured:
        faults = {t.why for t in trials if t.state == "failed"}
        raise RunError(
            f"no trial reported {spec.metric!r}"
            + (f": {'; '.join(sorted(faults))}" if faults else ""),
            "does metrics() of the recipe return it? val_loss is always there with a 'val' split",
        )
    sign = 1 if spec.mode == "max" else -1
    return max(measured, key=lambda t: sign * (t.value or 0.0))


def table(trials: list[Trial], best: Trial, spec: SweepSpec) -> list[str]:
    """The trials as lines: parameters, best metric, steps, state and what ended it."""
    names = list(spec.space)
    head = ["trial", *names, spec.metric, "steps", "state", "why"]
    rows = [
        [
            ("* " if t is best else "  ") + t.name,
            *(_short(t.params.get(n)) for n in names),
            "-" if t.value is None else f"{t.value:.4f}",
            f"{t.step}/{t.steps}", t.state, t.why,
        ]
        for t in trials
    ]  # fmt: skip
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
             for r in [head, *rows]]  # fmt: skip
    early = sum(t.state == "stopped" for t in trials)
    lines.append(
        f"{len(trials)} trials · {early} stopped early · best {spec.metric} {best.value:.4f} ({best.name})"
    )
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _register(
    spec: SweepSpec, folder: RunFolder, data: str | None, best: Trial
) -> ModelVersion | None:
    from sundog.runs.register import register

    if spec.register_ is None:
        return None
    run = trial_spec(spec, best.params)
    recipe = open_recipe(folder.root, run, data, None)
    prefix = f"{trial_folder(folder.run_id, best.name)}/checkpoints"
    checkpoint = Checkpoints(folder.root, prefix).latest()
    if checkpoint is None:
        raise RunError(f"{best.name} left no good checkpoint to register", "run the sweep again")
    version, alias, why = register(
        folder.root, spec.register_, recipe, checkpoint, best.metrics,
        lineage(data=data, run_id=folder.run_id, spec=run, trial=best.name, params=best.params,
                step=checkpoint.step),
    )  # fmt: skip
    if version is None:
        say(folder, f"not registered as {spec.register_.as_}: {why}")
        return None
    named = f" ({alias})" if alias else ""
    folder.event(telemetry.RUN_REGISTERED, model=version.ref, alias=alias)
    say(folder, f"registered {version.ref}{named} from {best.name} · {why}")
    return version


def _shown_class() -> type:
    from ray.tune import Callback

    return Callback


class Shown(_shown_class()):  # type: ignore[misc]
    """Prints a line when a trial ends, so that a sweep is seen to move."""

    def __init__(self, folder: RunFolder, spec: SweepSpec) -> None:
        self._folder, self._spec = folder, spec
        self._ended = 0

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._line(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._line(trial)

    def _line(self, trial: Any) -> None:
        self._ended += 1
        last = trial.last_result or {}
        value = last.get(self._spec.metric)
        shown = "no report" if value is None else f"{self._spec.metric} {value:.4f}"
        say(
            self._folder,
            f"  {self._ended}/{self._spec.trials}  {_trial_name(trial)} · {shown} · "
            f"step {last.get('step', 0)}/{last.get('steps', 0)}",
        )
        self._folder.update(step=self._ended, steps=self._spec.trials)
