"""The schedulers of a sweep: Tune's own and ours, behind one that keeps count and says why.

Makes the spec's choice, limits how many trials run at once, shows a restarted scheduler what was
reported before, and keeps the reason of every stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from sundog.runs.halving import Rule
from sundog.runs.halving_tune import HalvingScheduler
from sundog.runs.sweep_room import Room
from sundog.spec.sweep import Choice, Domain, Int, Log, SweepSpec, Uniform

_WORST = 1e300  # finite: percentiles are interpolated
CLOCK = "report"  # what schedulers count: our reports, which go on across submissions


def scheduler(spec: SweepSpec, reports: int) -> TrialScheduler:
    """The spec's scheduler. `reports`: how many a whole trial sends."""
    aim: dict[str, Any] = {"metric": spec.metric, "mode": spec.mode, "time_attr": CLOCK}
    chosen = spec.scheduler
    if chosen.asha:
        return ASHAScheduler(
            grace_period=chosen.asha.grace, reduction_factor=chosen.asha.eta,
            brackets=chosen.asha.brackets, max_t=10**9, **aim,
        )  # fmt: skip
    if chosen.halving:
        options = chosen.halving
        rule = Rule(
            max_age=max(1, reports), grace=min(options.grace, max(1, reports)), keep=options.keep,
            steepness=options.steepness, thrift=options.thrift,
        )  # fmt: skip
        return HalvingScheduler(rule, cost_attr="cost", **aim)
    if chosen.hyperband:
        return HyperBandScheduler(
            max_t=max(1, reports), reduction_factor=chosen.hyperband.eta, **aim
        )
    if chosen.median:
        return MedianStoppingRule(
            grace_period=chosen.median.grace, min_samples_required=chosen.median.least,
            min_time_slice=math.inf, **aim,
        )  # fmt: skip
    if chosen.pbt:
        return PopulationBasedTraining(
            perturbation_interval=chosen.pbt.every, quantile_fraction=chosen.pbt.quantile,
            resample_probability=chosen.pbt.resample, log_config=False, require_attrs=False,
            custom_explore_fn=_Bounds(spec),
            hyperparam_mutations={n: mutation(spec.space[n]) for n in chosen.pbt.mutate}, **aim,
        )  # fmt: skip
    return FIFOScheduler()


def mutation(domain: Domain) -> Any:
    """The domain as Tune draws and perturbs it."""
    match domain:
        case Uniform(uniform=(low, high)):
            return tune.uniform(low, high)
        case Log(log=(low, high)):
            return tune.loguniform(low, high)
        case Int(int_=(first, last)):
            return tune.randint(first, last + 1)
        case Choice(choice=values):
            return list(values)


class _Bounds:
    """Keeps what PBT perturbs (by 0.8 or 1.2) inside the space."""

    def __init__(self, spec: SweepSpec) -> None:
        self._space = dict(spec.space)

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        for name, value in config.items():
            match self._space.get(name):
                case Uniform(uniform=(low, high)) | Log(log=(low, high)):
                    config[name] = min(max(value, low), high)
                case Int(int_=(first, last)):
                    config[name] = min(max(value, first), last)
        return config


class Watched(TrialScheduler):
    """A scheduler that never runs more than `most` trials, hears nothing twice, and says why.

    `past` gives the reports (number, value) of a trial in earlier submissions; `cost` its dollars
    or node-seconds so far; `places` says where each trial shall run.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        inner: TrialScheduler,
        spec: SweepSpec,
        most: int,
        past: Mapping[str, Sequence[tuple[int, float]]],
        ended: Sequence[str],
        cost: Callable[[str], float],
        places: Room | None = None,
    ) -> None:
        super().__init__()
        self.inner, self._spec, self._most, self._places = inner, spec, most, places
        self._past, self._ended, self._cost = dict(past), list(ended), cost
        self._seen: dict[str, int] = {}
        self._live: dict[str, Trial] = {}
        self.stopped: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given, to restore it: we restore from our journal

    # --- what the driver asks ---------------------------------------------------------------------

    def running(self) -> int:
        """Trials that hold resources or will in a moment."""
        ended = [n for n, t in self._live.items() if t.is_finished()]
        for name in ended:
            del self._live[name]
        return sum(t.status in (Trial.PENDING, Trial.RUNNING) for t in self._live.values())

    @property
    def room(self) -> bool:
        return self.running() < self._most

    @property
    def workers(self) -> int:
        """Of each trial."""
        return 1 if self._places is None else self._places.workers

    def holds_fresh(self) -> bool:
        """Whether a trial that waits deserves the next worker more than a fresh one does."""
        if not isinstance(self.inner, HalvingScheduler):
            return False
        return self.inner.board.choose(True).action == "resume"

    def statuses(self) -> dict[str, str]:
        # A copy: a driver that is cancelled closes the book while Tune's thread still runs.
        return {name: trial.status for name, trial in dict(self._live).items()}

    # --- what Tune asks ---------------------------------------------------------------------------

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # the inner one was made with them

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if self._ended:
            self._show_ended(tune_controller)
        self._seat(trial)
        self._live[trial.trial_id] = trial
        past = self._past.pop(trial.trial_id, ())
        self.inner.on_trial_add(tune_controller, trial)
        self._show(tune_controller, trial, past)
        if past and isinstance(self.inner, HalvingScheduler):
            self.inner.adopt(trial, running=trial.status != Trial.PAUSED)

    def _seat(self, trial: Trial) -> None:
        """Where a trial that is about to begin, or to begin again, shall be."""
        if self._places is None:
            return
        waiting = [t for t in self._live.values() if t is not trial and t.status == Trial.PENDING]
        trial.update_resources(self._places.request(len(waiting)))

    def _show_ended(self, tune_controller: Any) -> None:
        """Trials of earlier submissions: peers of those to come, though they never run here."""
        names, self._ended = self._ended, []
        if not isinstance(self.inner, ASHAScheduler | MedianStoppingRule | HalvingScheduler):
            return  # brackets and populations are of those that run together
        for name in names:
            stand_in: Any = _StandIn(name)
            past = self._past.pop(name, ())
            if not past:
                continue
            self.inner.on_trial_add(tune_controller, stand_in)
            self._show(tune_controller, stand_in, past)
            if isinstance(self.inner, HalvingScheduler):
                self.inner.on_trial_complete(tune_controller, stand_in, {})

    def _show(self, controller: Any, trial: Any, past: Sequence[tuple[int, float]]) -> None:
        total = self._cost(trial.trial_id)
        for count, (number, value) in enumerate(past, 1):
            self._seen[trial.trial_id] = number
            if isinstance(self.inner, HyperBandScheduler | PopulationBasedTraining):
                continue
            if math.isfinite(value) or not self._cuts_at_once:
                cost = total * count / len(past)  # as if all reports had cost the same
                result = {CLOCK: number, self._spec.metric: self._plain(value), "cost": cost}
                self.inner.on_trial_result(controller, trial, result)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        name, number = trial.trial_id, result.get(CLOCK)
        if number is None or self._spec.metric not in result:
            return self.CONTINUE  # its last word; the function ends by itself
        if number <= self._seen.get(name, 0) and not self._spec.scheduler.pbt:
            return self.CONTINUE  # said again after an older checkpoint
        self._seen[name] = number
        value = float(result[self._spec.metric])
        if not math.isfinite(value) and self._cuts_at_once:
            if number < self._grace:
                return self.CONTINUE
            self.stopped[name] = f"its {self._spec.metric} is {value} after {number} reports"
            return self.STOP
        shown = {**result, self._spec.metric: self._plain(value), "cost": self._cost(name)}
        said = self.inner.on_trial_result(tune_controller, trial, shown)
        if said == self.STOP:
            self.stopped[name] = self._why(name, number)
        return said

    @property
    def _cuts_at_once(self) -> bool:
        """Schedulers that compare with `<`, which NaN always survives: they are not asked."""
        return isinstance(self.inner, ASHAScheduler | MedianStoppingRule)

    @property
    def _grace(self) -> int:
        chosen = self._spec.scheduler.asha or self._spec.scheduler.median
        return chosen.grace if chosen else 1

    def _plain(self, value: float) -> float:
        """The value as schedulers can compare it: NaN and infinities are the worst there is."""
        if math.isfinite(value):
            return value
        if isinstance(self.inner, HalvingScheduler):
            return math.nan
        return -_WORST if self._spec.mode == "max" else _WORST

    def _why(self, name: str, number: int) -> str:
        chosen = self._spec.scheduler
        if isinstance(self.inner, HalvingScheduler):
            return self.inner.reasons.get(name, "")
        if chosen.asha:
            return f"not in the best 1/{chosen.asha.eta:g} after {number} reports"
        if chosen.median:
            return f"below the others' median after {number} reports"
        return f"cut in its bracket after {number} reports"

    def reason(self, name: str) -> str:
        """Why a trial that waited was ended."""
        if name in self.stopped:
            return self.stopped[name]
        return self._why(name, self._seen.get(name, 0))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if math.isfinite(result.get(self._spec.metric, math.nan)):
            self.inner.on_trial_complete(tune_controller, trial, result)
        else:
            self.inner.on_trial_error(tune_controller, trial)  # its last word was why it failed

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.inner.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self.inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        if isinstance(self.inner, HalvingScheduler) and not self.room:
            return None  # it takes an answer for a promise
        chosen = self.inner.choose_trial_to_run(tune_controller)
        if chosen is not None and chosen.status == Trial.PAUSED:
            if not self.room:
                return None
            self._seat(chosen)
        return chosen

    def debug_string(self) -> str:
        return str(self.inner.debug_string())

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


class _StandIn:
    """A trial of an earlier submission, as far as schedulers look at one."""

    status = Trial.TERMINATED

    def __init__(self, name: str) -> None:
        self.trial_id = name
        self.config: dict[str, Any] = {}
        self.last_result: dict[str, Any] = {}

    def is_finished(self) -> bool:
        return True
