"""An exact run computes on one kind of machine."""

from __future__ import annotations

import pytest
import torch
from toy import toy_spec

from sundog.errors import RunError
from sundog.runs import kind
from sundog.storage.root import open_root

CPU = torch.device("cpu")


def test_an_exact_run_refuses_another_kind_of_machine(tmp_path, monkeypatch):
    root = open_root(str(tmp_path))
    kind.settle_kind(root, "runs/r", toy_spec(), CPU)
    kind.settle_kind(
        root, "runs/r", toy_spec(), CPU
    )  # the others of the group, and who comes later
    monkeypatch.setattr(kind, "kind_of", lambda device: "NVIDIA-L4, torch 2.13.0")
    with pytest.raises(RunError, match="this worker on NVIDIA-L4") as refused:
        kind.settle_kind(root, "runs/r", toy_spec(), CPU)
    assert "exact: false" in refused.value.fix
    kind.settle_kind(root, "runs/r", toy_spec(exact=False), CPU)


def test_a_kind_names_what_bits_depend_on():
    assert torch.backends.cpu.get_cpu_capability() in kind.kind_of(CPU)
    assert "torch 2." in kind.kind_of(CPU)
