"""FLOPs that are counted, a peak that is known, or no figure at all."""

from __future__ import annotations

import pytest
import torch
from toy import Toy, toy_spec

from sundog.errors import Corrupt
from sundog.runs.follower import progress_line
from sundog.runs.mfu import mfu, peak_flops, sample_flops, settle_work
from sundog.storage.root import open_root

CPU = torch.device("cpu")
# Two layers forward, their weights' gradients, and the gradient between them.
TOY_FLOPS = 2 * (4 * 8 + 8 * 1) + 2 * (4 * 8 + 8 * 1) + 2 * 8


@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch": 6}, {"recompute": True}, {"compile": True}]
)
def test_the_flops_of_a_sample_are_counted_as_the_model_s_own(changes):
    assert sample_flops(toy_spec(**changes), Toy(), CPU) == TOY_FLOPS


def test_a_peak_is_known_from_the_spec_or_a_table_and_else_not(monkeypatch):
    cuda = torch.device("cuda")
    assert peak_flops(toy_spec(), CPU) is None
    assert peak_flops(toy_spec(peak_tflops=2), CPU) == 2e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    spec = toy_spec(precision="bf16", resources={"gpus": 1})
    assert peak_flops(spec, cuda) == pytest.approx(989.4e12)
    assert peak_flops(toy_spec(precision="bf16", resources={"gpus": 2}), cuda) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H2000")
    assert peak_flops(spec, cuda) is None


def test_a_run_counts_once_and_only_where_there_is_a_peak(tmp_path):
    root, recipe = open_root(str(tmp_path)), Toy()
    assert settle_work(root, "runs/r", toy_spec(), recipe, CPU) is None
    assert not recipe.calls
    for _ in range(2):
        work = settle_work(root, "runs/r", toy_spec(peak_tflops=1), recipe, CPU)
        assert work == {"flops": TOY_FLOPS, "peak_flops": 1e12}
    assert recipe.calls == 1
    root.write("runs/r/flops.json", b"?")
    with pytest.raises(Corrupt, match="flops"):
        settle_work(root, "runs/r", toy_spec(peak_tflops=1), recipe, CPU)


def test_a_recipe_that_cannot_be_counted_has_no_mfu_and_says_why(tmp_path, capsys):
    root = open_root(str(tmp_path))
    assert settle_work(root, "runs/r", toy_spec(peak_tflops=1), Toy(fail="loss"), CPU) is None
    assert "no MFU" in capsys.readouterr().out


def test_it_is_of_all_workers_devices_and_in_the_progress_line():
    progress = {
        "step": 3, "steps": 9, "epoch": 1.0, "loss": 0.5, "samples_s": 1000.0, "world": 2,
        "metrics": {}, "work": {"flops": 1e9, "peak_flops": 1e12},
    }  # fmt: skip
    assert mfu(progress) == pytest.approx(0.5)
    assert "MFU 50.0%" in progress_line(progress)
    assert "MFU" not in progress_line(progress | {"work": None})
