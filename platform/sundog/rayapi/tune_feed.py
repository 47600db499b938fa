"""Trials for Ray Tune with ids of our own, which its public searchers cannot give.

A `SearchAlgorithm` that hands out what it is given; a searcher would be wrapped by Tune, which then
draws the ids and refuses population-based training. Private: `config_parser` builds the `Trial`, whose
`run_metadata` keeps the last values of every metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial, _convert_to_experiment_list
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search.search_algorithm import SearchAlgorithm


@dataclass(frozen=True)
class Wanted:
    """A trial to hand to Tune. `paused`: it waits for the scheduler to resume it."""

    trial_id: str
    config: Mapping[str, Any]
    paused: bool = False


class Feed(SearchAlgorithm):
    """Asks `following()` for the next trial (None: not now) until `over()`."""

    def __init__(self, following: Callable[[], Wanted | None], over: Callable[[], bool]) -> None:
        self._following, self._over = following, over
        self._parser = _make_parser()
        self._spec: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given, to restore it: we restore from our journal

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def add_configurations(self, experiments: Any) -> None:
        (experiment,) = _convert_to_experiment_list(experiments)
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        wanted = None if self.is_finished() else self._following()
        if wanted is None:
            return None
        trial = _create_trial_from_spec(
            {**self._spec, "config": dict(wanted.config)}, self._parser,
            trial_id=wanted.trial_id, evaluated_params=dict(wanted.config),
            experiment_tag=wanted.trial_id,
        )  # fmt: skip
        if wanted.paused:
            trial.set_status(Trial.PAUSED)
        return trial

    def is_finished(self) -> bool:
        return self._finished or self._over()


def forget_history(trial: Trial) -> None:
    """Let go of what Tune keeps of an ended trial's metrics: several kilobytes each, read by nobody."""
    trial.run_metadata.metric_n_steps.clear()
    trial.run_metadata.metric_analysis.clear()
