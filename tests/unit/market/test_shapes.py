"""Which shapes meet a need."""

from __future__ import annotations

from typing import Any

import pytest

from sundog.market.shapes import catalogue, gpu_rank
from sundog.spec.cluster import Need


def fitting(cloud: str, **need: Any) -> list[str]:
    return [s.name for s in catalogue().fitting(cloud, Need.model_validate(need))]


def test_a_gpu_need_is_met_by_every_interchangeable_shape() -> None:
    assert fitting("aws", gpu="A10G x1") == [
        "g5.xlarge", "g5.2xlarge", "g5.4xlarge", "g5.8xlarge", "g5.16xlarge"
    ]  # fmt: skip
    assert fitting("aws", gpu="A10G x1", cpus="8..16") == ["g5.2xlarge", "g5.4xlarge"]
    assert fitting("aws", gpu="A10G x1", memory="60GiB..130GiB") == ["g5.4xlarge", "g5.8xlarge"]


def test_or_better_reads_up_the_order_and_never_down() -> None:
    names = fitting("aws", gpu="A10G x4 or better", cpus="16..")
    assert "g5.12xlarge" in names
    assert "g6e.12xlarge" in names
    assert not [n for n in names if n.startswith(("g4dn", "g6.", "p3."))]
    assert gpu_rank("T4") < gpu_rank("A10G") < gpu_rank("H100")  # type: ignore[operator]


def test_nobody_pays_for_a_gpu_they_did_not_ask_for() -> None:
    assert all(
        catalogue().shape("aws", n).accelerators == 0  # type: ignore[union-attr]
        for n in fitting("aws", cpus="4..8")
    )


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_every_cloud_has_gpu_shapes(cloud: str) -> None:
    kinds = catalogue().gpu_kinds(cloud)
    assert {"T4", "A100-80GB", "H100"} & set(kinds)
    assert all(gpu_rank(k) is not None or k == "V520" for k in kinds), kinds


def test_a_misspelt_shape_has_a_near_one() -> None:
    assert catalogue().near("aws", "g5.xlrge")[0] == "g5.xlarge"


def test_spot_of_the_newest_gpus_has_quotas_of_its_own() -> None:
    known = catalogue()

    def quota(name: str, market: str) -> str:
        shape = known.shape("aws", name)
        assert shape is not None
        return shape.quota(market)

    assert quota("p5.48xlarge", "spot") == "P5"
    assert quota("p5en.48xlarge", "spot") == "P5"
    assert quota("p4d.24xlarge", "spot") == "P"
    assert {quota(n, "on-demand") for n in ("p5.48xlarge", "p4d.24xlarge")} == {"P"}
    assert quota("g5.xlarge", "spot") == "G and VT"
