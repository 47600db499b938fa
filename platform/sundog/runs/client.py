"""Submitting, following and cancelling jobs on a cluster, from outside of it.

Talks to Ray's job API with typed errors; what the job does is `jobs.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sundog.clock import WALL, Clock
from sundog.errors import ClusterError, NotFound, RunCancelled, RunError

# What a working directory is uploaded without, besides what .gitignore names.
EXCLUDES = (".git/", ".venv/", ".venv-*/", ".sundog/", "node_modules/", "__pycache__/")
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class JobStatus:
    """`state` is Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    job_id: str
    state: str
    message: str
    entrypoint: str

    @property
    def ended(self) -> bool:
        return self.state in _ENDED


def submit(
    entrypoint: str,
    *,
    address: str | None = None,
    working_dir: str | None = ".",
    env: Mapping[str, str] | None = None,
    submission_id: str | None = None,
    requirements: Sequence[str] = (),
) -> str:
    """Submit a job; returns its id. ClusterError when there is no cluster or it refuses."""
    runtime_env: dict[str, Any] = {}
    if working_dir:
        runtime_env |= {"working_dir": working_dir, "excludes": list(EXCLUDES)}
    if env:
        runtime_env["env_vars"] = dict(env)
    if requirements:
        runtime_env["pip"] = list(requirements)
    with _talking(address) as client:
        job_id: str = client.submit_job(
            entrypoint=entrypoint, runtime_env=runtime_env, submission_id=submission_id
        )
        return job_id


def status(job_id: str, *, address: str | None = None) -> JobStatus:
    """Where the job stands. NotFound."""
    with _talking(address) as client:
        info = client.get_job_info(job_id)
        return JobStatus(
            job_id,
            str(getattr(info.status, "value", info.status)),
            info.message or "",
            info.entrypoint,
        )


def logs(job_id: str, *, address: str | None = None) -> str:
    """Everything the job's driver printed so far."""
    with _talking(address) as client:
        text: str = client.get_job_logs(job_id)
        return text


def follow(
    job_id: str, *, address: str | None = None, poll_s: float = 0.5, clock: Clock = WALL
) -> Iterator[str]:
    """The driver's lines as they come. Ends with the job: RunError or RunCancelled unless it
    succeeded."""
    shown = 0
    while True:
        now = status(job_id, address=address)  # before the logs, so that none is missed
        text = logs(job_id, address=address)
        whole = len(text) if now.ended else text.rfind("\n") + 1
        if whole > shown:
            yield from text[shown:whole].splitlines()
            shown = whole
        if now.ended:
            break
        clock.sleep(poll_s)
    if now.state == "STOPPED":
        raise RunCancelled(f"{job_id} was cancelled")
    if now.state == "FAILED":
        why, fix = _told(text, now.message)
        raise RunError(f"{job_id} failed: {why}", fix or f"it says more: ray job logs {job_id}")


def cancel(
    job_id: str, *, address: str | None = None, timeout_s: float = 15, clock: Clock = WALL
) -> JobStatus:
    """Stop the job and wait until it has ended. NotFound."""
    with _talking(address) as client:
        client.stop_job(job_id)
    deadline_s = clock.monotonic_s() + timeout_s
    while True:
        now = status(job_id, address=address)
        if now.ended or clock.monotonic_s() > deadline_s:
            return now
        clock.sleep(0.2)


def _told(text: str, message: str) -> tuple[str, str]:
    """What the job itself said went wrong and what to do, else what Ray says."""
    lines = text.splitlines()
    for i in range(len(lines) - 1, -1, -1):
        if lines[i].startswith("error: "):
            after = "".join(lines[i + 1 : i + 2])
            fix = after.strip() if after.startswith("  ") else ""
            return lines[i].removeprefix("error: "), fix
    return (message.strip().splitlines() or ["no message"])[0], ""


@contextmanager
def _talking(address: str | None) -> Iterator[Any]:
    where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    fix = "start Ray with `make up`, or say where it is: RAY_API_SERVER_ADDRESS=http://host:port"
    if not where:
        raise ClusterError("no address of a Ray cluster", fix)
    from ray.job_submission import JobSubmissionClient

    try:
        yield JobSubmissionClient(where)
    except ConnectionError as error:
        raise ClusterError(f"no Ray dashboard at {where}: {_first(error)}", fix) from None
    except RuntimeError as error:
        if "does not exist" in str(error):
            raise NotFound(_first(error), "see `ray job list`") from None
        if "401" in str(error) or "403" in str(error) or "token" in str(error).lower():
            raise ClusterError(
                f"{where} refuses this token", 'use the cluster\'s own: eval "$(sundog env)"'
            ) from None
        raise ClusterError(f"{where} refuses: {_first(error)}", fix) from None
    except ValueError as error:
        raise ClusterError(
            f"the job cannot be submitted: {_first(error)}",
            "see what it is made of: ray job submit --help",
        ) from None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
