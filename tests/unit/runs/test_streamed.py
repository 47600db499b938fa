from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sundog.errors import Corrupt, NotFound, RecipeError, StorageUnavailable
from sundog.runs.exchange import Alone
from sundog.runs.interval import Cadence
from sundog.runs.loop import STOP, Loop
from sundog.runs.recipe import Recipe
from sundog.runs.sampler import share
from sundog.runs.saver import Saver
from sundog.runs.streamed import RowGroups, Streamed, TokenWindows
from sundog.runs.verify import verify
from sundog.spec.run import RunSpec
from sundog.storage.datasets import write_dataset
from sundog.storage.root import open_root

ROWS = 2000


def table(rows: int = ROWS) -> pa.Table:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    lists = pa.FixedSizeListArray.from_arrays(pa.array((x / x.size).ravel()), 4)
    return pa.table({"x": lists, "y": np.arange(rows, dtype=np.int64), "text": ["a"] * rows})


@pytest.fixture
def data(tmp_path):
    """25 row groups of 80 rows."""
    return write_dataset(
        open_root(str(tmp_path)), "rows", {"train": table()}, group_bytes=table().nbytes // 25
    )


def test_rows_come_as_asked_for_and_only_their_row_groups_are_read(data):
    rows = Streamed(data, "train", ["x", "y"])
    assert len(rows) == ROWS
    assert rows.locality[0] == 80
    batch = rows.batch(np.array([85, 3, 81, 1999]))
    assert batch["y"].tolist() == [85, 3, 81, 1999]
    assert torch.equal(batch["x"][0], torch.tensor(table()["x"][85].as_py()))
    assert rows.reads.groups == 3
    assert rows[-1]["y"] == 1999
    assert rows.reads.groups == 3  # it is still in memory


def test_memory_is_bounded_and_what_was_dropped_is_read_again(data):
    whole = Streamed(data, "train", ["x", "y"])
    whole.batch(np.arange(ROWS))
    few = Streamed(data, "train", ["x", "y"], memory_bytes=whole.reads.bytes // 5)
    for start in (0, 0):
        few.batch(np.arange(start, ROWS))
    assert few.reads.most_bytes <= whole.reads.bytes // 5 + whole.reads.bytes // 25
    assert few.reads.again == 25


def test_what_comes_next_is_read_before_it_is_asked_for(data):
    rows = Streamed(data, "train", ["y"])
    rows.ahead(np.array([0, 500]))
    assert rows.batch(np.array([500, 0]))["y"].tolist() == [500, 0]
    assert rows.reads.groups == 2


def test_windows_of_tokens_overlap_by_the_one_to_predict(tmp_path):
    tokens = pa.table({"token": np.arange(1000, dtype=np.uint16)})
    data = write_dataset(open_root(str(tmp_path)), "t", {"train": tokens}, group_bytes=200)
    windows = TokenWindows(data, "train", 32)
    assert len(windows) == 31
    batch = windows.batch(np.array([30, 2]))
    assert batch["tokens"].shape == batch["targets"].shape == (2, 32)
    assert batch["tokens"][1].tolist() == list(range(64, 96))
    assert torch.equal(batch["targets"], batch["tokens"] + 1)
    with pytest.raises(RecipeError, match="too few for one window"):
        TokenWindows(data, "train", 1000)


def test_bad_data_gets_a_clear_message(data, tmp_path):
    with pytest.raises(NotFound, match="no column 'z'"):
        Streamed(data, "train", ["z"])
    with pytest.raises(RecipeError, match="'text' is string"):
        Streamed(data, "train").batch(np.array([0]))
    ragged = pa.table({"x": [[1], [1, 2]], "hole": pa.array([1, None])})
    data = write_dataset(open_root(str(tmp_path)), "ragged", {"train": ragged})
    with pytest.raises(RecipeError, match="differ in length"):
        Streamed(data, "train", ["x"]).batch(np.array([0]))
    with pytest.raises(RecipeError, match="empty values"):
        Streamed(data, "train", ["hole"]).batch(np.array([0]))
    (tmp_path / data.split("train").files[0]).write_bytes(b"rubbish")
    with pytest.raises(Corrupt, match="ragged@1 is damaged"):
        RowGroups(data, "train", None, 1)


def test_storage_that_is_away_is_not_called_damage(data, monkeypatch):
    rows = Streamed(data, "train", ["y"])

    def late(self, *_, **__):
        raise OSError(
            "When reading: AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached"
        )

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read_row_group", late)
        with pytest.raises(StorageUnavailable, match="is whole, but could not be read"):
            rows.batch(np.array([0]))

        def away(self, key, start=0):
            raise StorageUnavailable("the root does not answer")

        patch.setattr(type(data.root), "stream", away)
        with pytest.raises(StorageUnavailable, match="does not answer"):
            rows.batch(np.array([0]))
    assert rows.batch(np.array([0]))["y"].tolist() == [0]
    data.root.delete(data.split("train").files[0])
    with pytest.raises(Corrupt, match="it is gone"):
        RowGroups(data, "train", None, 1)


class Lines(Recipe):
    """A linear model on streamed rows; remembers what it was given."""

    def __init__(self, data=None, **params):
        super().__init__(data, **params)
        self.given: list[int] = []

    def model(self):
        return torch.nn.Linear(4, 1)

    def dataset(self, split):
        return Streamed(self.data, split, ["x", "y"], window=2)

    def loss(self, model, batch, rng):
        if torch.is_grad_enabled():
            self.given += batch["y"].tolist()
        return (model(batch["x"])[:, 0] - batch["y"] / ROWS).square().mean()

    def optimizer(self, params):
        return torch.optim.SGD(params, lr=0.05)

    def example_inputs(self):
        return {"x": torch.zeros(2, 4)}


def trained(data, root=None, asked=lambda: 0, **changes):
    spec = RunSpec.model_validate(
        {"run": "r", "recipe": "a:B", "batch": 50, "micro_batch": 5, "workers": "1..4",
         "epochs": 1, **changes}
    )  # fmt: skip
    recipe = Lines(data)
    loop = Loop(spec, recipe, asked=asked)
    if root:
        loop.saver = Saver(root, "runs/r", keep=2, cadence=Cadence(10))
    curve: list[float] = []
    loop.trace = lambda step, loss: curve.append(loss)
    loop.join(Alone())
    return loop, recipe, loop.run(), curve


def test_an_epoch_reads_every_row_once_and_every_row_group_once(data):
    loop, recipe, outcome, _ = trained(data, exact=False)
    assert outcome.state == "finished"
    assert sorted(recipe.given) == list(range(ROWS))
    assert loop.train.reads.groups == 25


def test_a_worker_reads_its_part_of_the_row_groups(data):
    loop, *_ = trained(data, exact=False, steps=1, epochs=None)
    plan, seen = loop.plan, []
    for rank in range(2):
        rows = Streamed(data, "train", ["y"])
        for step in range(40):
            rows.batch(plan.sampler.indices(step, *plan.rows_of(step, 2, rank)))
        seen.append(rows.reads.seen)
    assert share(10, 2, 0) == (0, 5)
    assert len(seen[0] | seen[1]) == 25
    assert len(seen[0] & seen[1]) <= 2  # those at the border of the two


def test_a_streamed_run_goes_on_in_the_middle_with_the_same_bits(data, tmp_path):
    _, _, _, curve = trained(data)
    root = open_root(str(tmp_path))
    asked = iter([0] * 17 + [STOP])
    _, first, stopped, before = trained(data, root, lambda: next(asked))
    assert stopped.state == "stopped"
    assert 15 < stopped.step < 20
    loop, second, outcome, after = trained(data, root)
    assert outcome.state == "finished"
    assert before + after == curve
    # What was consumed before is not read again: the position is the step.
    assert sorted(first.given + second.given[-(40 - stopped.step) * 50 :]) == list(range(ROWS))
    verdict = verify(root, "r")
    assert (verdict.lost, verdict.duplicated, verdict.steps) == (0, 0, 40)
    assert loop.plan.block == 80
