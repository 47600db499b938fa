"""A batch job through Ray's own job CLI: every row answered once, whatever happens to the driver."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest
import yaml
from test_runs_train import folder, root, spec, submit  # noqa: F401

from sundog.storage.models import Registry
from sundog.storage.runs import RunFolder
from sundog.storage.signature import Signature, TensorSpec

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def trained(local_ray, folder, root):  # noqa: F811
    name = spec(folder, "for-batch", steps=150, register={"as": "digits", "alias": "champion"})
    code, text = submit(local_ray, folder, f"python jobs/train.py {name}")
    assert code == 0, text


def test_a_batch_answers_every_row(trained, local_ray, folder, root):  # noqa: F811
    code, text = submit(
        local_ray, folder, "python jobs/batch.py jobs/specs/digits-batch.yaml --run-id batch-1"
    )
    assert code == 0, text
    record = RunFolder(root, "batch-1").record()
    table = pyarrow.dataset.dataset(record["output"].removeprefix("file://")).to_table()
    assert table.num_rows == record["metrics"]["rows"] > 300
    import numpy as np

    answers = np.stack(table["output"].to_pylist()).argmax(1)
    assert (answers == np.array(table["label"].to_pylist())).mean() > 0.9
    again, text = submit(
        local_ray, folder, "python jobs/batch.py jobs/specs/digits-batch.yaml --run-id batch-1"
    )
    assert again == 0
    assert "finished already" in text


MARKED = """
import os, time
import numpy as np

class Marked:
    def predict(self, inputs):
        print("asked for", len(inputs["x"]))
        time.sleep(0.05)
        assert os.environ["TOKEN"] == "s3cret"
        return {"y": inputs["x"] * float(os.environ["FACTOR"])}
"""


@pytest.mark.slow
def test_a_batch_killed_and_submitted_again_goes_on(local_ray, folder, root):  # noqa: F811
    (folder / "marked.py").write_text(MARKED)
    (folder / "token").write_text("s3cret\n")
    x = (TensorSpec("x", "FP64", (-1,)),)
    Registry(root).import_python(
        "marked", folder, "marked:Marked", Signature(x, (TensorSpec("y", "FP64", (-1,)),))
    )
    data = folder / "rows"
    data.mkdir()
    for i in range(2):
        rows = range(i * 2000, i * 2000 + 2000)
        table = pyarrow.table({"x": pyarrow.array(rows, pyarrow.float64())})
        pyarrow.parquet.write_table(table, data / f"{i}.parquet", row_group_size=500)
    job = {
        "batch": "again", "model": "marked@latest", "data": str(data), "keep": ["x"], "rows": 16,
        "allow_code": True, "env": {"FACTOR": "2"}, "secrets": {"TOKEN": f"file:{folder}/token"},
    }  # fmt: skip
    (folder / "again.yaml").write_text(yaml.safe_dump(job))
    command = "python jobs/batch.py again.yaml --run-id again-1"
    submit(local_ray, folder, command, "--no-wait", "--submission-id", "again-a")
    output = Path(root.url.removeprefix("file://"), "runs/again-1/output")
    deadline = time.monotonic() + 200
    while len(list(output.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in local_ray.processes():
        with suppress(psutil.Error):
            if "batch.py" in " ".join(process.cmdline()):
                process.kill()
    time.sleep(0.5)  # an upload that was under way ends
    before = mtimes(output)
    code, text = submit(local_ray, folder, command)
    assert code == 0, text
    assert f"{len(before)} of" in text
    assert "answered already" in text
    assert {n: t for n, t in mtimes(output).items() if n in before} == before
    table = pyarrow.dataset.dataset(output).to_table()
    assert table["x"].to_pylist() == list(range(4000))  # each once, in the order of the input
    assert table["y"].to_pylist() == [2.0 * n for n in range(4000)]
    run = RunFolder(root, "again-1")
    assert any("asked for 16" in line for line in run.logs())
    assert "s3cret" not in json.dumps(run.record())
    (folder / "again.yaml").write_text(yaml.safe_dump(job | {"keep": []}))
    run.update(state="cancelled")
    code, text = submit(local_ray, folder, command)
    assert code != 0
    assert "began with another model, data or columns" in text


def mtimes(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
