"""One trial of a sweep, inside its own process: the training loop alone, reporting as it evaluates.

Saves the state of its best evaluation, so the winner can be registered. Decides nothing.
"""

from __future__ import annotations

import json
import os
from typing import Any

from sundog.errors import RunError
from sundog.spec.sweep import SweepSpec
from sundog.storage.runs import RunFolder


def run_trial(values: dict[str, Any], job: dict[str, Any]) -> None:
    """A Tune function trainable. `values` are the trial's; `job` is what `sweep.py` made."""
    import sys

    if job["directory"] and job["directory"] not in sys.path:
        sys.path.insert(0, job["directory"])
    os.environ.update(job["environment"])
    from ray import tune

    from sundog.runs.exchange import Alone
    from sundog.runs.loop import Loop
    from sundog.runs.sweep import trial_folder, trial_spec
    from sundog.runs.worker import open_recipe

    spec, folder = SweepSpec.model_validate(job["sweep"]), job["folder"]
    run = trial_spec(spec, values)
    name = tune.get_context().get_trial_name()
    recipe = open_recipe(folder.root, run, job["data"], job["directory"])
    loop = Loop(run, recipe)
    loop.after_evaluation = Reporter(spec, folder, trial_folder(folder.run_id, name), name)
    loop.join(Alone())
    outcome = loop.run()
    if outcome.state == "failed":
        raise RunError(outcome.why, outcome.fix)


class Reporter:
    """Called after each evaluation: keeps the best state, then reports to Tune, which may end us."""

    def __init__(self, spec: SweepSpec, folder: RunFolder, prefix: str, name: str) -> None:
        from sundog.runs.interval import Cadence
        from sundog.runs.saver import Saver

        self._spec, self._name = spec, name
        self._saver = Saver(folder.root, prefix, keep=1, cadence=Cadence())
        self._best: float | None = None
        self._metrics: dict[str, float] = {}

    def __call__(self, loop: Any) -> None:
        from ray import tune

        metrics = dict(loop.metrics)
        if self._spec.metric not in metrics:
            raise RunError(
                f"the recipe reports no {self._spec.metric!r}, only {', '.join(sorted(metrics))}",
                "name one of these as the sweep's metric",
            )
        value = metrics[self._spec.metric]
        sign = 1 if self._spec.mode == "max" else -1
        if self._best is None or sign * value > sign * self._best:
            self._best, self._metrics = value, metrics
            self._saver.offer(loop, now=True)
            self._saver.close()
        tune.report(
            {
                **metrics, "step": loop.step, "steps": loop.steps, "trial": self._name,
                "best_metrics": json.dumps(self._metrics),
            }
        )  # fmt: skip
