"""Machine shapes of the three clouds and which of them meet a need. Knows no prices."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from sundog.spec.cluster import Need

# Weakest to strongest, by what training and serving feel: memory and tensor throughput together.
# "or better" reads along this list; kinds of one row are as good as each other.
GPU_ORDER: tuple[tuple[str, ...], ...] = (
    ("K80",),
    ("T4", "T4G"),
    ("V100",),
    ("V100-32GB",),
    ("L4",),
    ("A10", "A10G"),
    ("L40S",),
    ("A100",),
    ("A100-80GB",),
    ("RTX-PRO-6000",),
    ("H100", "H100-NVL"),
    ("H200",),
    ("B200",),
)


@dataclass(frozen=True, slots=True)
class Shape:
    cloud: str
    name: str
    family: str
    vcpus: int
    memory_gib: float
    accelerator: str
    accelerators: int
    accelerator_gib: int
    arch: str

    def quota(self, market: str) -> str:
        """The group a cloud counts its quotas by: on AWS `G and VT`, `P`, or `Standard`; on GCP the name of
        its metric, by kind of GPU; on Azure the family, and for spot `all families`.

        Spot of P5 and of P6 has groups of its own on AWS; on-demand they are with the other P.
        """
        if self.cloud == "gcp":
            if self.accelerators:
                return f"NVIDIA_{self.accelerator.replace('-', '_')}_GPUS"
            shared = self.family in ("n1", "e2", "f1", "g1")
            return "CPUS" if shared else f"{self.family.upper()}_CPUS"
        if self.cloud == "azure":
            return "all families" if market == "spot" else self.family
        if self.cloud != "aws":
            return self.family
        if market == "spot" and self.name.startswith(("p5", "p6")):
            return self.name[:2].upper()
        return {"g": "G and VT", "p": "P"}.get(self.name[0], "Standard")

    @property
    def quota_unit(self) -> str:
        """What its quota counts: vCPUs; on GCP, of a machine with GPUs, these."""
        return "GPUs" if self.cloud == "gcp" and self.accelerators else "vCPUs"

    @property
    def quota_units(self) -> int:
        return self.accelerators if self.quota_unit == "GPUs" else self.vcpus


def gpu_rank(kind: str) -> int | None:
    """Place in GPU_ORDER, or None for a kind that is not in it."""
    return next((i for i, row in enumerate(GPU_ORDER) if kind in row), None)


def meets(shape: Shape, need: Need) -> bool:
    """Whether one machine of this shape has what the need asks for."""
    if need.gpu is None:
        if shape.accelerators:  # a GPU nobody asked for is money nobody asked to spend
            return False
    elif shape.accelerators != need.gpu.count or not _good_enough(shape.accelerator, need):
        return False
    low, high = need.memory_bytes
    memory_bytes = shape.memory_gib * 2**30
    return (
        shape.vcpus in need.cpus
        and shape.arch == "amd64"
        and memory_bytes >= low
        and (high is None or memory_bytes <= high)
    )


def _good_enough(kind: str, need: Need) -> bool:
    assert need.gpu is not None
    if kind == need.gpu.kind:
        return True
    asked, has = gpu_rank(need.gpu.kind), gpu_rank(kind)
    return need.gpu.or_better and asked is not None and has is not None and has >= asked


class Catalogue:
    """All known shapes of all clouds."""

    def __init__(self, shapes: Iterable[Shape]) -> None:
        self._shapes = {(s.cloud, s.name): s for s in shapes}

    def shape(self, cloud: str, name: str) -> Shape | None:
        return self._shapes.get((cloud, name))

    def of(self, cloud: str) -> list[Shape]:
        return [s for (c, _), s in self._shapes.items() if c == cloud]

    def fitting(self, cloud: str, need: Need, only: Iterable[str] = ()) -> list[Shape]:
        """Shapes of `cloud` that meet the need, smallest first; only those named, if any are."""
        allowed = set(only)
        found = [s for s in self.of(cloud) if meets(s, need) and (not allowed or s.name in allowed)]
        return sorted(found, key=lambda s: (s.accelerators, s.vcpus, s.memory_gib, s.name))

    def near(self, cloud: str, name: str) -> list[str]:
        """Known shapes spelled like `name`, best first."""
        return difflib.get_close_matches(name, [s.name for s in self.of(cloud)], n=3, cutoff=0.6)

    def with_more(self, shapes: Iterable[Shape]) -> Catalogue:
        """With those that are not known yet; what is known stays as it is."""
        return Catalogue([*shapes, *self._shapes.values()])

    def gpu_kinds(self, cloud: str) -> list[str]:
        return sorted({s.accelerator for s in self.of(cloud) if s.accelerator})


def read_shapes(rows: Iterable[dict[str, str]]) -> list[Shape]:
    return [
        Shape(
            r["cloud"], r["shape"], r["family"], int(r["vcpus"]), float(r["memory_gib"]),
            r["accelerator"], int(r["accelerators"]), int(r["accelerator_gib"]), r["arch"],
        )
        for r in rows
    ]  # fmt: skip


@cache
def catalogue() -> Catalogue:
    """The shapes that ship with the package."""
    text = resources.files("sundog.market").joinpath("data/shapes.csv").read_text("utf-8")
    return Catalogue(read_shapes(csv.DictReader(text.splitlines())))
