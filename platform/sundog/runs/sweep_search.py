"""Which configuration a sweep tries next: at random, along a grid, or by Optuna's model.

Each searcher is told what is known already, so that a sweep that was interrupted goes on as one.
Starts nothing and knows nothing of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sundog.errors import SundogError
from sundog.runs.sweep_space import draw, grid, holds
from sundog.spec.sweep import DEFAULT_TRIALS, Choice, Int, Log, SweepSpec, Uniform


class Search(Protocol):
    total: int
    """Configurations at most."""

    def propose(self, number: int) -> dict[str, Any]:
        """The configuration of trial `number`."""
        ...

    def began(self, number: int, values: Mapping[str, Any]) -> None:
        """A configuration of an earlier submission, proposed then."""
        ...

    def ended(self, number: int, objectives: Sequence[float] | None, step: int, cut: bool) -> None:
        """What it showed (None: nothing), after how many reports, and whether it was cut short."""
        ...


def searcher(spec: SweepSpec, known: int = 0) -> Search:
    """The spec's searcher. `known`: how many configurations earlier submissions proposed."""
    if spec.searcher.grid:
        return Grid(spec)
    if spec.searcher.optuna:
        return Modelled(spec, known)
    return Drawn(spec)


def configurations(spec: SweepSpec) -> int:
    """How many there are to try at most: `trials`, or all of a grid."""
    if spec.searcher.grid:
        whole = len(grid(spec))
        return whole if spec.trials is None else min(whole, spec.trials)
    return DEFAULT_TRIALS if spec.trials is None else spec.trials


class Drawn:
    def __init__(self, spec: SweepSpec) -> None:
        self._spec, self.total = spec, configurations(spec)

    def propose(self, number: int) -> dict[str, Any]:
        return draw(self._spec, number)

    def began(self, number: int, values: Mapping[str, Any]) -> None: ...

    def ended(
        self, number: int, objectives: Sequence[float] | None, step: int, cut: bool
    ) -> None: ...


class Grid(Drawn):
    def __init__(self, spec: SweepSpec) -> None:
        super().__init__(spec)
        self._all = grid(spec)
        self.total = configurations(spec)

    def propose(self, number: int) -> dict[str, Any]:
        return self._all[number]


class Modelled:
    """Optuna (Akiba et al., 2019), asked and told. Higher-level state is rebuilt from what is told."""

    def __init__(self, spec: SweepSpec, known: int = 0) -> None:
        try:
            import optuna
        except ImportError:
            raise SundogError(
                "searcher: optuna is not installed", "pip install 'sundog[sweeps]'"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._spec, self.total = optuna, spec, configurations(spec)
        directions = ["maximize" if m == "max" else "minimize" for m in spec.objectives.values()]
        # Another seed for what comes after an interruption, or the first draws would come again.
        sampler = self._sampler(spec, spec.seed + 1000 * known)
        self._study = optuna.create_study(directions=directions, sampler=sampler)
        self._asked: dict[int, Any] = {}

    def _sampler(self, spec: SweepSpec, seed: int) -> Any:
        import warnings

        options, samplers = spec.searcher.optuna, self._optuna.samplers
        assert options is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some of these are experimental
            if options.sampler == "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=options.startup)
            if options.sampler == "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=max(2, options.startup))
            return samplers.TPESampler(
                seed=seed, n_startup_trials=options.startup, constant_liar=True,
                multivariate=options.multivariate, group=options.multivariate,
            )  # fmt: skip

    def propose(self, number: int) -> dict[str, Any]:
        trial = self._study.ask()
        self._asked[number] = trial
        return self._suggest(trial)

    def began(self, number: int, values: Mapping[str, Any]) -> None:
        self._study.enqueue_trial({n: _plain(self._spec, n, v) for n, v in values.items()})
        self.propose(number)

    def ended(self, number: int, objectives: Sequence[float] | None, step: int, cut: bool) -> None:
        trial, state = self._asked.pop(number, None), self._optuna.trial.TrialState
        if trial is None:
            return
        if not objectives or any(not math.isfinite(v) for v in objectives):
            # Without a value it stands below all that were cut: what diverges is not tried again.
            worst = cut and len(self._study.directions) == 1
            self._study.tell(trial, state=state.PRUNED if worst else state.FAIL)
        elif cut and len(objectives) == 1:
            trial.report(objectives[0], step)
            self._study.tell(trial, state=state.PRUNED)
        else:
            self._study.tell(trial, list(objectives))

    def learn(self, values: Mapping[str, Any], objectives: Sequence[float]) -> bool:
        """A result of another sweep. False: it does not fit the space."""
        if not holds(self._spec, values) or any(not math.isfinite(v) for v in objectives):
            return False
        plain = {n: _plain(self._spec, n, v) for n, v in values.items()}
        self._study.add_trial(
            self._optuna.trial.create_trial(
                params=plain, values=list(objectives),
                distributions={n: self._distribution(n) for n in values},
            )
        )  # fmt: skip
        return True

    def importances(self) -> dict[str, float]:
        """Parameter -> the share of the first objective's variation that it explains."""
        tools = self._optuna.importance
        try:
            import sklearn  # noqa: F401 - fANOVA's forest

            evaluator = tools.FanovaImportanceEvaluator(seed=0)
        except ImportError:
            evaluator = tools.PedAnovaImportanceEvaluator()
        found = tools.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}

    def _suggest(self, trial: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, domain in self._spec.space.items():
            if not domain.applies(values):
                continue
            match domain:
                case Uniform(uniform=(low, high)):
                    values[name] = trial.suggest_float(name, low, high)
                case Log(log=(low, high)):
                    values[name] = trial.suggest_float(name, low, high, log=True)
                case Int(int_=(first, last)):
                    values[name] = trial.suggest_int(name, first, last)
                case Choice(choice=choices):
                    # Optuna keeps plain values only; lists go by their place.
                    if _are_plain(choices):
                        values[name] = trial.suggest_categorical(name, choices)
                    else:
                        values[name] = choices[trial.suggest_categorical(name, range(len(choices)))]
        return values

    def _distribution(self, name: str) -> Any:
        kinds = self._optuna.distributions
        match self._spec.space[name]:
            case Uniform(uniform=(low, high)):
                return kinds.FloatDistribution(low, high)
            case Log(log=(low, high)):
                return kinds.FloatDistribution(low, high, log=True)
            case Int(int_=(first, last)):
                return kinds.IntDistribution(first, last)
            case Choice(choice=choices):
                plain = choices if _are_plain(choices) else range(len(choices))
                return kinds.CategoricalDistribution(plain)


def _are_plain(choices: Sequence[Any]) -> bool:
    return all(c is None or isinstance(c, bool | int | float | str) for c in choices)


def _plain(spec: SweepSpec, name: str, value: Any) -> Any:
    domain = spec.space[name]
    if isinstance(domain, Choice) and not _are_plain(domain.choice):
        return domain.choice.index(value)
    return value
