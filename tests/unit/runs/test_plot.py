from __future__ import annotations

import math

import pytest

from sundog.clock import ManualClock
from sundog.errors import NotFound, SpecError
from sundog.runs.plot import draw, read
from sundog.storage.root import open_root
from sundog.storage.runs import new_run


@pytest.fixture
def folder(tmp_path):
    """A run of 400 steps that lost a worker at step 200, went ten steps back, and grew again."""
    clock = ManualClock(1_700_000_000.0)
    folder = new_run(open_root(str(tmp_path)), "r", "r-1", clock=clock)
    steps = [*range(10, 201, 10), *range(190, 401, 10)]
    for i, step in enumerate(steps):
        clock.advance(1.0)
        if i in (20, 26):
            folder.event(
                "run.recovered" if i == 20 else "run.resized", step=step,
                steps_back=10 if i == 20 else 0, took_s=1.9 if i == 20 else 0.4,
                workers=[2, 1] if i == 20 else [1, 2], nodes=1,
                stages={"noticed": 0.5, "parked": 0.8, "formed": 0.6} if i == 20 else {},
            )  # fmt: skip
        folder.event(
            "run.progress", step=step, loss=2.3 * math.exp(-step / 150),
            metrics={"val_loss": 2.4 * math.exp(-(step // 100) / 1.5)} if step > 100 else {},
            samples_s=100.0, workers=1 if 20 <= i < 26 else 2, goodput=0.95 - 0.1 * (i > 20),
            usd=None,
        )  # fmt: skip
    account = {"useful": 70.0, "restart": 4.2, "startup": 6.0, "recomputed": 2.0}
    dollars = {"useful": 0.35, "restart": 0.021, "startup": 0.03, "recomputed": 0.009}
    folder.update(state="finished", step=400, goodput=0.85, account=account, account_usd=dollars,
                  node_hours=82.2 / 3600, usd=0.41)  # fmt: skip
    return folder


def test_the_picture_tells_of_loss_workers_stages_and_dollars(folder, tmp_path):
    path = tmp_path / "r.svg"
    draw(read(folder), path)
    text = path.read_text()
    assert text.startswith("<?xml")
    # matplotlib writes its text as paths and keeps the words in comments
    for word in ("validation", "2→1", "recomputed", "goodput 85.0%", "$0.41", "parked", "10 again",
                 "$0.350", "$0.021", "1.90 s · $0.0095 · 10"):  # fmt: skip
        assert word in text, word


def test_steps_that_were_computed_again_count_once(folder):
    story = read(folder)
    kept = [p["step"] for p in story.kept]
    assert kept == sorted(set(kept))
    assert len(story.points) - len(kept) == 2


def test_what_cannot_be_drawn_says_why(folder, tmp_path):
    with pytest.raises(SpecError, match="no kind of picture"):
        draw(read(folder), tmp_path / "r.doc")
    with pytest.raises(NotFound, match="no curve"):
        read(new_run(open_root(str(tmp_path)), "e", "e-1"))
