"""A sweep through Ray's own job CLI."""

from __future__ import annotations

import pytest
import yaml
from test_runs_train import REPO, folder, root, submit  # noqa: F401

from sundog.storage.models import Registry
from sundog.storage.runs import RunFolder

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def swept(local_ray, folder, root):  # noqa: F811
    code, text = submit(
        local_ray, folder, "python jobs/sweep.py jobs/specs/digits-sweep.yaml --run-id sweep-1"
    )
    assert code == 0, text
    return text


def test_a_sweep_stops_the_weak_and_registers_the_best(swept, root):  # noqa: F811
    record = RunFolder(root, "sweep-1").record()
    trials = record["trials"]
    assert len(trials) >= 8
    assert any(t["state"] == "stopped" and t["step"] < t["steps"] for t in trials)
    assert any(t["state"] == "finished" for t in trials)
    assert "stopped early" in swept
    best = max(t["value"] for t in trials)
    version = Registry(root).get(record["model"])
    assert version.metrics["accuracy"] == best
    assert version.lineage["run"] == "sweep-1"
    assert version.lineage["trial"] == record["best"]


@pytest.mark.slow
def test_a_metric_that_nobody_reports_is_named(local_ray, folder, root):  # noqa: F811
    text = yaml.safe_load((REPO / "jobs/specs/digits-sweep.yaml").read_text())
    text |= {"metric": "acuracy", "trials": 2, "sweep": "wrong"}
    (folder / "wrong.yaml").write_text(yaml.safe_dump(text))
    code, out = submit(local_ray, folder, "python jobs/sweep.py wrong.yaml --run-id wrong-1")
    assert code != 0
    assert "acuracy" in out
    assert RunFolder(root, "wrong-1").record()["state"] == "failed"
