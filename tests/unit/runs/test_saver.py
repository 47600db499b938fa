"""What a save says of itself, and why a run does not go on from a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from toy import Toy, toy_spec

from sundog.errors import RunError
from sundog.runs.exchange import Alone
from sundog.runs.interval import Cadence
from sundog.runs.ledger import Plan
from sundog.runs.loop import Loop
from sundog.runs.saver import Saver
from sundog.runs.sharded_saver import ShardedSaver
from sundog.storage.root import open_root


@pytest.mark.parametrize("kind", [Saver, ShardedSaver])
def test_each_checkpoint_says_how_long_a_step_waited_for_it(tmp_path, kind):
    notes: list = []
    layout = {"layout": "fsdp", "exact": False} if kind is ShardedSaver else {}
    loop = Loop(toy_spec(**layout), Toy())
    loop.saver = kind(
        open_root(str(tmp_path)), "runs/r", keep=2, cadence=Cadence(4),
        note=lambda event, fields: notes.append((event, fields)),
    )  # fmt: skip
    loop.trace = lambda step, loss: loop.saver.settle()  # a disk may be slower than four steps
    loop.join(Alone())
    loop.run()
    assert [(event, f["step"]) for event, f in notes] == [("checkpoint", s) for s in (4, 8, 12)]
    assert all(0 < f["stall_s"] <= f["took_s"] for _, f in notes)
    assert sum(f["stall_s"] for _, f in notes) == pytest.approx(loop.saver.stall_s)


PLAN = {"rows": 100, "batch": 96, "count": 8, "seed": 0, "block": 80, "window": 8}


@pytest.mark.parametrize(
    ("changes", "said", "way"),
    [
        ({"rows": 90}, "rows of training data 90 → 100", "pin the data"),
        ({"seed": 3}, "seed 3 → 0", "write seed: 3"),
        ({"batch": 48, "count": 6}, "batch 48 → 96, micro-batches 6 → 8", "write batch: 48; or"),
        ({"count": 12}, "micro-batches 12 → 8", "write micro_batch: 8; or"),
        ({"count": 2}, "micro-batches 2 → 8", "write micro_batch: 48 and workers: 2 at most"),
        ({"block": 40}, "rows that lie together in the data 40 → 80", "the same version"),
        ({"window": 4}, "window of row groups 4 → 8", "window=4"),
    ],
)
def test_another_plan_says_what_changed_and_how_to_go_back(tmp_path, changes, said, way):
    saver = Saver(open_root(str(tmp_path)), "runs/r", keep=2, cadence=Cadence(4))
    loop = SimpleNamespace(plan=Plan(**PLAN), spec=toy_spec(workers="1..4"))
    saver.check_plan(PLAN, loop)
    with pytest.raises(RunError, match=said) as caught:
        saver.check_plan(PLAN | changes, loop)
    assert way in caught.value.fix
