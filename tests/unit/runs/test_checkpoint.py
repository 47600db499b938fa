from __future__ import annotations

import json

import pytest

from sundog.errors import Corrupt, FormatTooNew
from sundog.runs.checkpoint import Checkpoints
from sundog.storage.root import open_root


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(open_root(str(tmp_path)), "runs/r/checkpoints", keep=2)


def spoil(tmp_path, step: int) -> None:
    (file,) = (tmp_path / f"runs/r/checkpoints/{step}").glob("state-*")
    data = bytearray(file.read_bytes())
    data[1] ^= 1
    file.write_bytes(bytes(data))


def test_what_is_saved_is_read(checkpoints):
    checkpoints.save(5, {"state": b"abc"}, {"loss": 1})
    found = checkpoints.latest()
    assert (found.step, found.parts["state"], found.about["loss"]) == (5, b"abc", 1)


def test_only_the_newest_are_kept(checkpoints):
    for step in (5, 10, 100):
        checkpoints.save(step, {"state": b"abc"}, {})
    assert checkpoints.steps() == [10, 100]


def test_a_corrupted_one_is_skipped_for_the_one_before_with_a_word(checkpoints, tmp_path):
    checkpoints.save(5, {"state": b"abc"}, {})
    checkpoints.save(6, {"state": b"def"}, {})
    spoil(tmp_path, 6)
    words = []
    assert checkpoints.latest(lambda step, why: words.append((step, why))).step == 5
    assert words[0][0] == 6
    assert "does not match its hash" in words[0][1]


def test_a_half_written_one_is_skipped(checkpoints, tmp_path):
    checkpoints.save(5, {"state": b"abc"}, {})
    (tmp_path / "runs/r/checkpoints/6").mkdir()
    (tmp_path / "runs/r/checkpoints/6/state-x").write_bytes(b"ab")
    assert checkpoints.latest().step == 5
    with pytest.raises(Corrupt, match="half-written"):
        checkpoints.read(6)


def test_none_is_none(checkpoints):
    assert checkpoints.latest() is None


def test_a_newer_format_is_refused(checkpoints, tmp_path):
    checkpoints.save(5, {"state": b"abc"}, {})
    manifest = tmp_path / "runs/r/checkpoints/5/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(FormatTooNew):
        checkpoints.latest()


def test_saving_a_step_again_replaces_it(checkpoints):
    checkpoints.save(5, {"state": b"abc"}, {})
    checkpoints.save(5, {"state": b"xyz"}, {})
    assert checkpoints.read(5).parts["state"] == b"xyz"


def test_a_half_written_one_of_a_later_step_does_not_push_out_the_good_one(tmp_path):
    checkpoints = Checkpoints(open_root(str(tmp_path)), "runs/r/checkpoints", keep=1)
    checkpoints.save(100, {"state": b"good"}, {})
    checkpoints.put(200, {"state": b"killed while it was written"})
    checkpoints.save(150, {"state": b"the run went back to 100 and on"}, {})
    found = checkpoints.latest()
    assert found is not None
    assert found.step == 150
    assert checkpoints.steps() == [150]
