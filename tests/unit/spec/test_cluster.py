"""Cluster specs: what parses, and that each fault names its line and the way out."""

from __future__ import annotations

import pytest

from sundog.errors import SpecError
from sundog.spec.cluster import ClusterSpec, GpuNeed, Need
from sundog.spec.load import parse

GOOD = """\
cluster: train
cloud: {aws: {region: us-east-1, zones: all}}
budget: $60/h
head: {cpus: 4, memory: 16GiB}
pools:
  a10g:
    need: {gpu: A10G x1, cpus: 4.., memory: 16GiB..}
    nodes: 0..8
    market: spot-first
idle: 5min
"""


def test_a_spec_parses_into_plain_units() -> None:
    spec = parse(GOOD, ClusterSpec)
    pool = spec.pools["a10g"]
    assert spec.cloud.name == "aws"
    assert spec.cloud.region == "us-east-1"
    assert (spec.budget, spec.idle, spec.head.memory) == (60.0, 300.0, 16 * 2**30)
    assert pool.need.gpu == GpuNeed(kind="A10G", count=1)
    assert pool.need.memory_bytes == (16 * 2**30, None)


@pytest.mark.parametrize(
    ("text", "kind", "count", "better"),
    [
        ("A10G", "A10G", 1, False),
        ("A10G x4", "A10G", 4, False),
        ("A10G x4 or better", "A10G", 4, True),
    ],
)
def test_a_gpu_is_written_as_people_say_it(text: str, kind: str, count: int, better: bool) -> None:
    need = Need.model_validate({"gpu": text})
    assert need.gpu == GpuNeed(kind=kind, count=count, or_better=better)
    assert Need.model_validate(need.model_dump()) == need


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("market: spot-first", "market: spot-frist", ["cluster.yaml:9", "spot-first"]),
        ("{gpu: A10G x1,", "{gpu: 4x A10G,", ["cluster.yaml:7", "A10G x4"]),
        ("nodes: 0..8", "nodes: 2..", ["cluster.yaml:", "no upper end"]),
        ("nodes: 0..8", "nodes: 0..8\n    on_demand_floor: 9", ["more than nodes: 0..8 allows"]),
        ("{aws: {region: us-east-1, zones: all}}", "{}", ["cluster.yaml:2", "name one cloud"]),
        ("zones: all}", "zones: all}, onprem: {}", ["aws and onprem are two"]),
        ("idle: 5min", "idel: 5min", ["cluster.yaml:10", "did you mean 'idle'"]),
        ("idle: 5min", "ssh: {open_to: [everyone]}", ["not a network"]),
        ("memory: 16GiB..", "memory: 16GiB..8GiB", ["runs backwards"]),
    ],
)  # fmt: skip
def test_a_fault_names_its_line_and_the_way_out(old: str, new: str, says: list[str]) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        parse(GOOD.replace(old, new, 1), ClusterSpec, "cluster.yaml")
    for part in says:
        assert part in str(caught.value)


def test_an_onprem_pool_names_its_hosts() -> None:
    text = "cluster: lab\ncloud: {onprem: {}}\nhead: {host: 10.0.0.1}\npools:\n  gpu: {need: {}}\n"
    with pytest.raises(SpecError, match="names its hosts"):
        parse(text, ClusterSpec)
