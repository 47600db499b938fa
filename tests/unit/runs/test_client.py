from __future__ import annotations

import pytest

from sundog.errors import RunCancelled, RunError
from sundog.runs import client


def followed(monkeypatch, state: str, text: str) -> list[str]:
    status = client.JobStatus("job-1", state, "the driver ended with 1", "python jobs/train.py")
    monkeypatch.setattr(client, "status", lambda *_, **__: status)
    monkeypatch.setattr(client, "logs", lambda *_, **__: text)
    return list(client.follow("job-1"))


def test_a_job_that_failed_passes_on_what_it_said_and_what_to_do(monkeypatch):
    text = "step 1\nerror: run.yaml:3: stepz: unknown key\n  did you mean 'steps'?\nbye\n"
    with pytest.raises(RunError, match=r"job-1 failed: run\.yaml:3: stepz") as raised:
        followed(monkeypatch, "FAILED", text)
    assert raised.value.fix == "did you mean 'steps'?"
    with pytest.raises(RunError, match="the driver ended with 1") as raised:
        followed(monkeypatch, "FAILED", "killed\n")
    assert raised.value.fix == "it says more: ray job logs job-1"


def test_a_job_that_was_stopped_is_not_a_failure(monkeypatch):
    with pytest.raises(RunCancelled):
        followed(monkeypatch, "STOPPED", "step 1\n")
    assert followed(monkeypatch, "SUCCEEDED", "step 1\nstep 2") == ["step 1", "step 2"]
