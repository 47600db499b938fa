"""A checkpoint becomes one version, however often its driver comes to that point."""

from __future__ import annotations

import io

import pytest
import torch
from toy import Toy

from sundog.runs.checkpoint import Checkpoint
from sundog.runs.register import register
from sundog.runs.saver import STATE
from sundog.spec.run import RegisterRule
from sundog.storage.models import Registry
from sundog.storage.root import open_root

RULE = RegisterRule.model_validate({"as": "toy", "if": "error < 1", "alias": "champion"})


@pytest.fixture
def root(tmp_path):
    return open_root(str(tmp_path))


def checkpoint(step: int = 5) -> Checkpoint:
    buffer = io.BytesIO()
    torch.save({"model": Toy().model().state_dict()}, buffer)
    return Checkpoint(step, {}, {STATE: buffer.getvalue()})


def test_a_driver_killed_after_registering_does_not_register_again(root):
    lineage = {"run": "toy-1", "step": 5}
    first, alias, _ = register(root, RULE, Toy(), checkpoint(), {"error": 0.5}, lineage)
    assert (first.ref, alias) == ("toy@1", "champion")
    again, alias, _ = register(root, RULE, Toy(), checkpoint(), {"error": 0.5}, lineage)
    assert (again.ref, alias) == ("toy@1", "champion")
    further, _, _ = register(root, RULE, Toy(), checkpoint(), {"error": 0.4}, lineage | {"step": 6})
    assert further.ref == "toy@2"
    assert len(Registry(root).versions("toy")) == 2


def test_a_rule_that_is_not_met_registers_nothing(root):
    version, alias, why = register(root, RULE, Toy(), checkpoint(), {"error": 2.0}, {"run": "r"})
    assert (version, alias) == (None, None)
    assert "error is 2" in why
    assert Registry(root).models() == []
