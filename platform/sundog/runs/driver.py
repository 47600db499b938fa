"""What every driver of a run does: hold the lease, keep the record true, stop cleanly when told to.

Knows nothing of what the run computes.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from sundog import telemetry
from sundog.clock import WALL, Clock
from sundog.errors import RunBusy, RunCancelled, RunError, SundogError
from sundog.storage.root import Root
from sundog.storage.runs import RunFolder, new_run

LEASE_S = 10.0
T = TypeVar("T")


def open_folder(root: Root, name: str, run_id: str | None) -> RunFolder:
    """The folder of a new run, or of `run_id` (else SUNDOG_RUN_ID), which resumes if it exists."""
    return new_run(root, name, run_id or os.environ.get("SUNDOG_RUN_ID") or None)


def say(folder: RunFolder, text: str) -> None:
    """One line for whoever follows the job, kept in the run's log as well."""
    print(text, flush=True)
    with suppress(SundogError):  # a full root must not hide what went wrong
        folder.append_log("driver", text + "\n")


@contextmanager
def driving(
    folder: RunFolder, kind: str, clock: Clock = WALL, **about: Any
) -> Iterator[dict[str, Any]]:
    """Drive the run inside the block. Whatever ends it, the record says how.

    The block fills the yielded dict with what the record of a finished run shall say besides.
    Raises RunBusy when another driver is alive, RunCancelled on SIGTERM or SIGINT.
    """
    lease = _acquire(folder, clock)
    before = folder.record()
    resumed = before.get("started_s") is not None
    with lease.kept(), _cancellable(folder):
        folder.update(
            kind=kind, state="running", message="", ended_s=None,
            started_s=before.get("started_s") or clock.now_s(), job_id=_job_id(),
            # The driver before was killed: a cancelled or failed run has waited for nobody.
            cut_off=resumed and before.get("state") == "running", **about,
        )  # fmt: skip
        folder.event(telemetry.RUN_RESUMED if resumed else telemetry.RUN_STARTED, kind=kind)
        done: dict[str, Any] = {}
        try:
            yield done
        except RunBusy:
            raise  # the run is another driver's now; its record is not ours to change
        except RunCancelled as error:
            _end(folder, "cancelled", telemetry.RUN_CANCELLED, clock, message=error.message)
            raise
        except SundogError as error:
            _end(folder, "failed", telemetry.RUN_FAILED, clock, message=str(error), **done)
            raise
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            _end(folder, "failed", telemetry.RUN_FAILED, clock, message=message)
            raise
        _end(folder, "finished", telemetry.RUN_FINISHED, clock, **done)


def _job_id() -> str | None:
    """The id under which Ray's job API knows this driver; None when it was not submitted."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    job_id: str | None = (config.get("metadata") or {}).get("job_submission_id")
    return job_id


def _end(folder: RunFolder, state: str, event: str, clock: Clock, **fields: Any) -> None:
    try:
        folder.update(state=state, ended_s=clock.now_s(), **fields)
        folder.event(event, message=fields.get("message", ""))
        folder.flush()
    except SundogError as error:
        if state == "finished":
            raise
        print(f"the record of {folder.run_id} could not be written: {error}", file=sys.stderr)


def _acquire(folder: RunFolder, clock: Clock) -> Any:
    """The lease. A driver that was killed leaves one behind: wait once for it to run out."""
    holder = f"{platform.node()}:{os.getpid()}"
    deadline = clock.monotonic_s() + LEASE_S * 1.2
    told = False
    while True:
        try:
            return folder.acquire(holder, LEASE_S)
        except RunBusy as error:
            if clock.monotonic_s() > deadline:
                raise
            if not told:
                print(f"{error.message}; waiting for it to end", flush=True)
                told = True
            clock.sleep(0.5)


@contextmanager
def _cancellable(folder: RunFolder) -> Iterator[None]:
    """SIGTERM (what `ray job stop` sends) and SIGINT become RunCancelled in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: FrameType | None) -> None:
        # Ray kills the driver three seconds after it asked: once is enough.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RunCancelled(
            f"{folder.run_id} was cancelled",
            f"go on from its last checkpoint with --run-id {folder.run_id}",
        )

    before = {n: signal.signal(n, cancel) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(work: Callable[[], T], check: Callable[[], None] = lambda: None) -> T:
    """`work()`, in a thread of its own: a signal ends the waiting, though not the thread, and so
    does what `check` raises, which is called all along.

    Inside Ray's own waiting a signal handler may not raise anything but KeyboardInterrupt.
    """
    answer = begun(work)
    while not answer.done():
        wait([answer], timeout=0.2)
        check()
    return answer.result()


def begun(work: Callable[[], T]) -> Future[T]:
    """What `work()` will give, in a thread of its own that ends with the process."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is awaited
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name="run").start()
    return answer


class Watcher:
    """A thread that calls `look` every `every_s` seconds until it is left; never outlives its run."""

    def __init__(self, look: Callable[[], None], every_s: float) -> None:
        self._look, self._every_s = look, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="run-watcher")

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._stop.wait(self._every_s)  # one last look when it ends
            # What it shows is only a view: a root or a GCS that is away for a moment is no reason
            # to end a run. The run itself fails on what it cannot do without.
            with suppress(SundogError, RuntimeError, OSError):
                self._look()


def failed(outcome: dict[str, Any]) -> RunError:
    """The error that workers agreed on."""
    return RunError(str(outcome.get("why") or "a worker failed"), str(outcome.get("fix") or ""))
