"""Training data streamed from S3: what goes over the wire is what the steps need."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pytest
import s3server

from sundog.runs.ledger import Plan
from sundog.runs.streamed import Streamed
from sundog.storage.datasets import write_dataset
from sundog.storage.root import open_root


class CountingProxy(s3server.BreakingProxy):
    """Counts the bytes that come from the server."""

    down = 0

    def _down(self, near, far):
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                self.down += len(data)
                near.sendall(data)


@pytest.fixture
def proxy(monkeypatch):
    for name, value in s3server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3server.s3_server() as endpoint, CountingProxy(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def test_steps_download_their_row_groups_and_no_more(proxy):
    root = open_root(f"s3://{s3server.make_bucket(proxy.endpoint)}/p")
    rows, width = 64_000, 64
    noise = np.random.default_rng(0).random((rows, width), dtype=np.float32)  # does not compress
    lists = pa.FixedSizeListArray.from_arrays(pa.array(noise.ravel()), width)
    table = pa.table({"x": lists, "y": np.arange(rows), "unused": noise[:, 0]})
    data = write_dataset(root, "big", {"train": table}, group_bytes=table.nbytes // 128)
    before = proxy.down
    streamed = Streamed(data, "train", ["x", "y"], window=2, memory_bytes=4 << 20)
    plan = Plan(len(streamed), 64, 8, seed=1, block=streamed.locality[0], window=2)
    for step in range(20):
        indices = plan.sampler.indices(step, *plan.rows_of(step, world=4, rank=1))
        streamed.ahead(plan.sampler.indices(step + 1, *plan.rows_of(step + 1, 4, 1)))
        batch = streamed.batch(indices)
        assert batch["y"].tolist() == indices.tolist()
        assert np.array_equal(batch["x"].numpy(), noise[indices])
    # Two lanes of eight, a window of two row groups each (a third at a border) of 128.
    assert streamed.reads.groups <= 8
    assert proxy.down - before < 0.1 * table.nbytes
    assert streamed.reads.most_bytes <= 5 << 20
