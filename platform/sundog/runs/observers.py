"""Who else follows a run's curve: Prometheus through Ray's own metrics, MLflow where it is set up.

Each takes the points that the driver records; none can end a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sundog import telemetry
from sundog.errors import RunError, SundogError, first_line
from sundog.runs.driver import say
from sundog.storage.runs import RunFolder


class Observer(Protocol):
    def point(self, point: Mapping[str, Any]) -> None:
        """One point: step, loss, metrics, samples_s, workers, goodput, mfu, stall_s,
        usd."""

    def end(self, state: str) -> None: ...


class Gauges:
    """Ray's metrics, which every node serves to Prometheus (`ray_sundog_run_…`), by run."""

    def __init__(self, run_id: str) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"run": run_id}
        self._gauges = {
            field: Gauge(name, description=said, tag_keys=("run",))
            for field, (name, said) in telemetry.RUN_GAUGES.items()
        }
        self._metric = Gauge(
            telemetry.RUN_METRIC, description="A validation metric.", tag_keys=("run", "metric")
        )

    def point(self, point: Mapping[str, Any]) -> None:
        for field, gauge in self._gauges.items():
            if point.get(field) is not None:
                gauge.set(float(point[field]), tags=self._tags)
        for name, value in (point.get("metrics") or {}).items():
            self._metric.set(float(value), tags={**self._tags, "metric": name})

    def end(self, state: str) -> None:
        self._gauges["workers"].set(0.0, tags=self._tags)


class MlFlow:
    """One MLflow run per run, under the experiment of its name, by Ray's integration.

    A run that resumes goes on in the same MLflow run. RunError when the server does not answer.
    """

    def __init__(self, folder: RunFolder) -> None:
        try:
            from mlflow.exceptions import MlflowException
            from ray.air.integrations.mlflow import setup_mlflow
        except ImportError:
            raise RunError(
                "MLFLOW_TRACKING_URI is set, but mlflow is not installed",
                "pip install 'sundog[tracking]', or unset it",
            ) from None
        self._faults = (MlflowException, OSError)
        self._folder = folder
        record = folder.record()
        before = record.get("mlflow_run_id")
        if before:
            os.environ["MLFLOW_RUN_ID"] = before
        # Minutes of retries are too long to wait for a server that is not there.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        address = os.environ["MLFLOW_TRACKING_URI"]
        try:
            self._mlflow = setup_mlflow(
                {} if before else _flat(record.get("spec") or {}), tracking_uri=address,
                experiment_name=record.get("name") or folder.run_id, run_name=folder.run_id,
                create_experiment_if_not_exists=True,
                tags={"sundog.run": folder.run_id, "sundog.data": str(record.get("data"))},
            )  # fmt: skip
            self._run_id = self._mlflow.active_run().info.run_id
        except self._faults as error:
            raise RunError(
                f"MLflow at {address} does not answer: {first_line(error)}",
                "start it, or unset MLFLOW_TRACKING_URI",
            ) from None
        finally:
            os.environ.pop("MLFLOW_RUN_ID", None)
        folder.update(mlflow_run_id=self._run_id)

    def point(self, point: Mapping[str, Any]) -> None:
        values = {k: point.get(k) for k in telemetry.RUN_GAUGES if k != "step"}
        values |= point.get("metrics") or {}
        numbers = {k: float(v) for k, v in values.items() if v is not None}
        # By its id: MLflow's own "active run" is the main thread's, and this one is not.
        with self._forgiven():
            self._mlflow.log_metrics(numbers, step=int(point["step"]), run_id=self._run_id)

    def end(self, state: str) -> None:
        status = {"finished": "FINISHED", "cancelled": "KILLED"}.get(state, "FAILED")
        with self._forgiven():
            self._mlflow.MlflowClient().set_terminated(self._run_id, status)
            self._mlflow.end_run(status)

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        """A server that is away costs points of its curve, and a line, but not the run."""
        try:
            yield
        except self._faults as error:
            if not self._told:
                self._told = True
                say(self._folder, f"MLflow does not take what it is told: {type(error).__name__}")

    _told = False


class Observers:
    """All that are set up here, from `begin()` to the end of the block, whatever ends it."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._all: list[Observer] = []

    def begin(self) -> None:
        """RunError where MLflow is asked for and is not there."""
        import ray

        if ray.is_initialized():
            self._all.append(Gauges(self._folder.run_id))
        if os.environ.get("MLFLOW_TRACKING_URI"):
            self._all.append(MlFlow(self._folder))

    def point(self, point: Mapping[str, Any]) -> None:
        for observer in self._all:
            observer.point(point)

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *_: object) -> None:
        state = ""
        with suppress(SundogError):
            state = str(self._folder.record().get("state"))
        for observer in self._all:
            observer.end(state)


def _flat(spec: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in spec.items():
        if value is None or key in ("env", "secrets"):
            continue
        if isinstance(value, Mapping):
            out |= _flat(value, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = value
    return out
