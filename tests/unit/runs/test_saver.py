"""What a save says of itself, and why a run does not go on from a checkpoint."""

from __future__ import annotations

import pytest
from toy import Toy, toy_spec

from sundog.runs.exchange import Alone
from sundog.runs.interval import Cadence
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
    loop.join(Alone())
    loop.run()
    assert [(event, f["step"]) for event, f in notes] == [("checkpoint", s) for s in (4, 8, 12)]
    assert all(0 < f["stall_s"] <= f["took_s"] for _, f in notes)
    assert sum(f["stall_s"] for _, f in notes) == pytest.approx(loop.saver.stall_s)
