"""Ray Tune's side of `halving`: reports in, verdicts out, paused trials resumed when they deserve it.

Responsible for translating between Tune's callbacks and the board. Refuses to decide anything.

Limit concurrency by the trials' resources, not by the searcher: Tune's searchers count paused
trials as running ones and would stop suggesting. Trials that report a checkpoint with every report
resume where they paused; others repeat what they did since, which is not counted twice.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from sundog.runs.halving import Board, Rule


class HalvingScheduler(TrialScheduler):
    """`halving` as a scheduler of Ray Tune.

    `cost_attr` names a cumulative cost in each result; `usd_per_unit` makes dollars of it (time
    priced at the node's rate). `reasons` keeps the last word on every trial.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        rule: Rule,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        cost_attr: str = "time_total_s",
        usd_per_unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.board = Board(rule)
        self.reasons: dict[str, str] = {}
        self._metric, self._mode = metric, mode
        self._time_attr, self._cost_attr, self._usd = time_attr, cost_attr, usd_per_unit
        self._costs: dict[str, float] = {}
        self._resuming: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        if (self._metric and metric) or (self._mode and mode):
            return False
        self._metric, self._mode = metric or self._metric, mode or self._mode
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if not self._metric or self._mode not in ("min", "max"):
            raise ValueError("HalvingScheduler needs a metric and a mode of 'min' or 'max'")

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self._resuming.discard(trial.trial_id)
        if self._metric not in result or self._time_attr not in result:
            return self.CONTINUE
        seen = self.board.trials.get(trial.trial_id)
        if seen is not None and result[self._time_attr] <= seen.age:
            return self.CONTINUE  # repeated after an older checkpoint
        total = float(result.get(self._cost_attr, 0.0)) * self._usd
        cost = max(0.0, total - self._costs.get(trial.trial_id, 0.0))
        self._costs[trial.trial_id] = total
        value = float(result[self._metric])
        said = self.board.report(trial.trial_id, -value if self._mode == "min" else value, cost)
        self.reasons[trial.trial_id] = said.reason
        return {"continue": self.CONTINUE, "pause": self.PAUSE, "complete": self.STOP}[said.action]

    def adopt(self, trial: Trial, running: bool) -> None:
        """A trial of an earlier submission whose reports were shown again: it ran, or was paused."""
        if running:
            self.board.start(trial.trial_id)
            self._resuming.add(trial.trial_id)
        else:
            self.board.trials[trial.trial_id].state = "paused"

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if trial.trial_id in self.board.trials:
            self.board.trials[trial.trial_id].state = "complete"

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.board.fail(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._resuming.discard(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """A fresh trial, a paused one that deserves it, or none. Ends the sweep when none does."""
        trials = tune_controller.get_trials()
        for trial in trials:
            if trial.status == Trial.PENDING and trial.trial_id in self._resuming:
                return trial
        fresh = [
            t for t in trials
            if t.status == Trial.PENDING and t.trial_id not in self.board.trials
        ]  # fmt: skip
        busy = any(t.status == Trial.RUNNING for t in trials)
        more = bool(fresh) or not tune_controller.search_alg.is_finished()
        if busy and not fresh and not self._has_room(tune_controller):
            return None
        # A searcher that waits for paused trials to end would wait for ever: go on without it.
        choice = self.board.choose(more if fresh or busy else False)
        if choice.action == "resume":
            return self._resumed(trials, choice.trial, choice.reason)
        if choice.action == "start":
            return fresh[0] if fresh else None
        if not busy:
            self._finish(tune_controller, trials, choice.reason)
        return None

    def _has_room(self, tune_controller: Any) -> bool:
        # Resuming asks for an actor, which waits for resources: never queue more than one.
        return not self._resuming

    def _resumed(self, trials: list[Trial], wanted: str | None, reason: str) -> Trial | None:
        for trial in trials:
            if trial.trial_id == wanted and trial.status == Trial.PAUSED:
                self.board.start(trial.trial_id)
                self._resuming.add(trial.trial_id)
                self.reasons[trial.trial_id] = f"resumed: {reason}"
                return trial
        return None  # its pause is still being saved

    def _finish(self, tune_controller: Any, trials: list[Trial], reason: str) -> None:
        if not tune_controller.search_alg.is_finished():
            return
        for trial in trials:
            if trial.status == Trial.PAUSED:
                self.reasons[trial.trial_id] += f"; {reason}"
                tune_controller.stop_trial(trial)

    def debug_string(self) -> str:
        states = [t.state for t in self.board.trials.values()]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        return f"Halving, round {self.board.round + 1}: {counts}"

    def save(self, checkpoint_path: str) -> None:
        kept = {
            "format": 1, "board": self.board.to_dict(), "costs": self._costs,
            "reasons": self.reasons, "metric": self._metric, "mode": self._mode,
        }  # fmt: skip
        Path(checkpoint_path).write_text(json.dumps(kept))

    def restore(self, checkpoint_path: str) -> None:
        kept = json.loads(Path(checkpoint_path).read_text())
        self.board = Board.from_dict(self.board.rule, kept["board"])
        for trial in self.board.trials.values():
            if trial.state == "running":
                trial.state = "paused" if math.isfinite(trial.cost) else "failed"
        self._costs, self.reasons = kept["costs"], kept["reasons"]
        self._metric, self._mode = kept["metric"], kept["mode"]
