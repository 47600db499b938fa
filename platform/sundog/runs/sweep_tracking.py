"""A sweep in MLflow: a run for the whole of it, and below that one for each trial.

Told by the driver, it talks to the server from a thread of its own: a slow server holds no trial up.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

from sundog.clock import WALL
from sundog.runs.observers import MlFlow
from sundog.runs.sweep_book import Trial
from sundog.storage.runs import RunFolder

_LAST_WORD_S = 30.0  # how long the end of a sweep waits for a server that is behind
_CANCELLED_S = 1.0  # and where Ray kills the driver in a moment
_STATES = {"finished": "FINISHED", "failed": "FAILED", "running": "RUNNING"}


def tracking(folder: RunFolder) -> SweepMlFlow | None:
    """None where MLFLOW_TRACKING_URI is not set. RunError when its server does not answer."""
    return SweepMlFlow(folder) if os.environ.get("MLFLOW_TRACKING_URI") else None


class SweepMlFlow(MlFlow):
    """Trials are found again by their tags, so a sweep that goes on goes on in the same runs."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self._client = self._mlflow.MlflowClient()
        self._children: dict[str, str] = {}
        self._running: set[str] = set()
        self._first: dict[str, Mapping[str, Any]] = {}
        self._changed: dict[str, set[str]] = {}
        self._ended = 0
        with self._forgiven():
            self._parent = self._client.get_run(self._run_id).info
            self._children = self._found()
        self._told_of: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    def reported(self, trial: Trial, step: int, metrics: Mapping[str, float]) -> None:
        """One report of a trial, with what it has cost so far."""
        values = {**metrics, "node_hours": trial.node_hours}
        values |= {} if trial.usd is None else {"usd": trial.usd}
        name, params, at_ms = trial.name, dict(trial.params), int(WALL.now_s() * 1000)
        self._told_of.put(lambda: self._report(name, params, values, step, at_ms))

    def ended(self, trial: Trial) -> None:
        """A trial will not go on, or not before the sweep is submitted again."""
        row = trial.row()
        self._told_of.put(lambda: self._end_of(row))

    def best(self, trial: Trial, spent: Mapping[str, float | None]) -> None:
        """The best so far, and what the whole sweep has cost."""
        values = {f"best_{k}": v for k, v in trial.metrics.items()}
        values |= {k: v for k, v in spent.items() if v is not None}
        name = trial.name
        self._told_of.put(lambda: self._best(name, values))

    def end(self, state: str) -> None:
        """Everything that was told is with the server when this returns, or it is too slow."""
        self._told_of.put(None)
        self._thread.join(_CANCELLED_S if state == "cancelled" else _LAST_WORD_S)
        super().end("cancelled" if state == "paused" else state)

    # --- in the thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        while (act := self._told_of.get()) is not None:
            with self._forgiven():
                act()

    def _found(self) -> dict[str, str]:
        runs = self._client.search_runs(
            [self._parent.experiment_id], f"tags.`sundog.sweep` = '{self._folder.run_id}'",
            max_results=10_000,
        )  # fmt: skip
        return {r.data.tags["sundog.trial"]: r.info.run_id for r in runs}

    def _child(self, name: str, params: Mapping[str, Any]) -> str:
        if name not in self._children:
            run_id = self._folder.run_id
            made = self._client.create_run(
                self._parent.experiment_id, run_name=f"{run_id}/{name}",
                tags={"mlflow.parentRunId": self._run_id, "sundog.sweep": run_id,
                      "sundog.trial": name},
            )  # fmt: skip
            self._children[name] = made.info.run_id
            for param, value in params.items():
                self._client.log_param(made.info.run_id, param, value)
        return self._children[name]

    def _report(
        self, name: str, params: Mapping[str, Any], values: Mapping[str, float], step: int, at_ms: int
    ) -> None:  # fmt: skip
        from mlflow.entities import Metric

        child = self._child(name, params)
        if name not in self._running:  # it may be one that an earlier submission left
            self._running.add(name)
            self._client.update_run(child, status="RUNNING")
        # MLflow's parameters are for ever; what population based training changes is a curve.
        first = self._first.setdefault(name, params)
        changed = {k for k, v in params.items() if _is_number(v) and v != first.get(k)}
        self._changed[name] = changed = self._changed.get(name, set()) | changed
        values = {**values, **{f"param.{k}": params[k] for k in changed}}
        logged = [Metric(k, float(v), at_ms, step) for k, v in values.items()]
        self._client.log_batch(child, metrics=logged)

    def _end_of(self, row: Mapping[str, Any]) -> None:
        child = self._child(row["trial"], row["params"])
        self._client.set_tag(child, "sundog.state", row["state"])
        self._client.set_tag(child, "sundog.why", row["why"])
        if self._changed.get(row["trial"]):  # those of its best value, as `sweep show` has them
            self._client.set_tag(child, "sundog.params", json.dumps(row["params"]))
        self._client.set_terminated(child, _STATES.get(row["state"], "KILLED"))

    def _best(self, name: str, values: Mapping[str, float]) -> None:
        self._ended += 1
        self._client.set_tag(self._run_id, "sundog.best", name)
        for key, value in values.items():
            self._client.log_metric(self._run_id, key, float(value), step=self._ended)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
