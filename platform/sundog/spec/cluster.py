"""A cluster: which cloud, which pools of interchangeable machines, for how much an hour at most.

Knows no prices and no shapes: whether a pool can be bought is checked where those are known
(`capacity/check.py`).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from sundog.spec.base import Name, Spec
from sundog.spec.quantity import DurationS, MemoryBytes, Range, UsdHour

PoolMarket = Literal["spot-first", "spot-only", "on-demand"]
CloudName = Literal["aws", "gcp", "azure", "onprem", "kuberay"]

MIN_DISK = 10 * 2**30
# What an EC2 tag key may hold where the metadata service shows tags to the instance, as it does here.
_TAG_KEY = re.compile(r"[\w+\-=.,:@]{1,128}")
_RESERVED_TAGS = ("aws:", "sundog:", "ray-", "Name")

_GPU = re.compile(r"([A-Za-z][\w-]*)(?:\s+x\s*(\d+))?")


class GpuNeed(Spec):
    """`A10G x4`: four GPUs of one kind in one machine. `or_better` admits any at least as good."""

    kind: str
    count: int = Field(1, ge=1)
    or_better: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text, better = value.strip(), False
        if text.endswith("or better"):
            text, better = text.removesuffix("or better").strip(), True
        match = _GPU.fullmatch(text)
        if not match:
            raise ValueError(f"{value!r} is not a GPU; write A10G, A10G x4 or A10G x4 or better")
        return {"kind": match[1], "count": int(match[2] or 1), "or_better": better}

    @model_serializer
    def _as_text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.kind} x{self.count}" + (" or better" if self.or_better else "")


class Need(Spec):
    """What one machine of a pool must have; every shape that has it is as good as any other."""

    gpu: GpuNeed | None = Field(None, examples=["A10G x1"])
    cpus: Range = Field(Range(1, None), description="vCPUs", examples=["4..", "4..16"])
    memory: str | None = Field(None, description="a size or 16GiB..", examples=["16GiB.."])

    @field_validator("memory", mode="before")
    @classmethod
    def _a_size(cls, value: Any) -> str | None:
        if value is None:
            return None
        from sundog.spec.quantity import parse_memory_bytes

        low, dots, high = str(value).partition("..")
        lowest = parse_memory_bytes(int(low) if low.strip().isdigit() else low)
        if high.strip() and parse_memory_bytes(high) < lowest:
            raise ValueError(f"{value!r} runs backwards; write {high.strip()}..{low.strip()}")
        return f"{low.strip()}..{high.strip()}" if dots else f"{low.strip()}.."

    @property
    def memory_bytes(self) -> tuple[int, int | None]:
        """At least, and at most if that was said."""
        from sundog.spec.quantity import parse_memory_bytes

        if self.memory is None:
            return 0, None
        low, _, high = self.memory.partition("..")
        lowest = parse_memory_bytes(int(low) if low.isdigit() else low)
        return lowest, parse_memory_bytes(high) if high else None


class Disk(Spec):
    size: MemoryBytes = Field(200 * 2**30, examples=["200GiB"])
    kind: str = Field("gp3", description="the cloud's name of the volume type")

    @field_validator("size")
    @classmethod
    def _holds_an_image(cls, value: int) -> int:
        if value < MIN_DISK:
            raise ValueError(f"a disk of {value} bytes holds no image; write 200GiB")
        return value


class Pool(Spec):
    """Machines that are interchangeable: whichever can be had for the least."""

    need: Need
    nodes: Range = Field(Range(0, 4), description="how many", examples=["0..8"])
    market: PoolMarket = "spot-first"
    shapes: tuple[str, ...] = Field((), description="only these shapes; empty: every one that fits")
    on_demand_floor: int = Field(0, ge=0, description="this many nodes are always on-demand")
    max_price: UsdHour | None = Field(None, description="no node above it", examples=["$2/h"])
    one_zone: bool = Field(False, description="a gang: all its nodes in one zone")
    network: Literal["default", "efa"] = "default"
    placement_group: str | None = Field(None, description="name of a cluster placement group")
    hand_back: float = Field(
        0.25, ge=0, le=1, description="give a stand-in back when spot saves at least this share"
    )
    rungs: int = Field(8, ge=1, le=32, description="offers tried per market before giving way")
    disk: Disk = Disk()
    idle: DurationS | None = Field(None, description="else the cluster's")
    labels: dict[str, str] = Field(default_factory=dict)
    hosts: tuple[str, ...] = Field((), description="on-prem: the machines of this pool")

    @model_validator(mode="after")
    def _consistent(self) -> Pool:
        if self.nodes.high is None:
            raise ValueError(f"nodes: {self.nodes} has no upper end; write {self.nodes.low}..8")
        if self.on_demand_floor > self.nodes.high:
            raise ValueError(
                f"on_demand_floor: {self.on_demand_floor} is more than nodes: {self.nodes} allows"
            )
        if self.market == "spot-only" and self.on_demand_floor:
            raise ValueError("on_demand_floor: a spot-only pool has none; write market: spot-first")
        return self


class Head(Spec):
    """The head is on-demand and runs no user code."""

    cpus: int = Field(4, ge=1)
    memory: MemoryBytes = Field(16 * 2**30, examples=["16GiB"])
    shape: str | None = Field(None, description="exactly this shape")
    disk: Disk = Disk(size=100 * 2**30)
    host: str | None = Field(None, description="on-prem: the machine")


class Image(Spec):
    """A machine image (or a container image for KubeRay)."""

    id: str
    user: str = "ubuntu"
    root_device: str = "/dev/sda1"


class AwsCloud(Spec):
    region: str = Field(examples=["us-east-1"])
    zones: Literal["all"] | tuple[str, ...] = Field(
        "all", description="zone ids (use1-az1): names like us-east-1a differ between accounts"
    )
    endpoint: str | None = Field(None, description="another EC2 endpoint, such as a test cloud")
    metadata: str | None = Field(None, description="another metadata service, such as a test's")
    head_role: str | None = Field(
        None, description="instance profile of the head; else sundog-head-CLUSTER"
    )
    node_role: str | None = Field(
        None, description="instance profile of workers; else sundog-node-CLUSTER"
    )
    tags: dict[str, str] = Field(default_factory=dict, description="cost tags on everything")

    @field_validator("tags")
    @classmethod
    def _takeable(cls, value: dict[str, str]) -> dict[str, str]:
        for key, said in value.items():
            if not _TAG_KEY.fullmatch(key) or key in (".", "..", "_index"):
                raise ValueError(
                    f"{key!r} is no tag key here: letters, digits and + - = . , : @ _, at most 128"
                )
            if key.startswith(_RESERVED_TAGS):
                raise ValueError(f"{key!r} is reserved; name the tag otherwise")
            if len(said) > 256:
                raise ValueError(f"{key}: a tag's value has at most 256 characters")
        return value


class GcpCloud(Spec):
    project: str
    region: str = Field(examples=["us-central1"])
    zone: str = Field(examples=["us-central1-a"])
    more_zones: tuple[str, ...] = Field((), description="zones to fall back to when it has nothing")
    tags: dict[str, str] = Field(default_factory=dict)
    service_account: str | None = None


class AzureCloud(Spec):
    subscription: str
    location: str = Field(examples=["eastus"])
    resource_group: str = "sundog"
    zone: str = Field("auto", description="auto, none, or a list such as 1,2")
    tags: dict[str, str] = Field(default_factory=dict)


class OnpremCloud(Spec):
    """Machines reached by SSH; nothing is bought, so nothing has a market."""


class KuberayCloud(Spec):
    namespace: str = "sundog"
    nodes_of: Literal["aws", "gcp", "azure"] = Field(
        "aws", description="whose machines Kubernetes runs on"
    )
    region: str
    spot_taint: str | None = Field(None, description="a taint of spot nodes that pods tolerate")


class Cloud(Spec):
    """Exactly one of the clouds."""

    aws: AwsCloud | None = None
    gcp: GcpCloud | None = None
    azure: AzureCloud | None = None
    onprem: OnpremCloud | None = None
    kuberay: KuberayCloud | None = None

    @model_validator(mode="after")
    def _one(self) -> Cloud:
        given = [n for n in type(self).model_fields if getattr(self, n) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are two" if given else "none is given"
            raise ValueError(
                f"name one cloud, {said}; one of: {', '.join(type(self).model_fields)}"
            )
        return self

    @property
    def name(self) -> CloudName:
        return next(n for n in type(self).model_fields if getattr(self, n) is not None)  # type: ignore[misc]

    @property
    def region(self) -> str:
        at = getattr(self, self.name)
        return str(getattr(at, "region", getattr(at, "location", "onprem")))


class Ssh(Spec):
    """How a person and the head reach the nodes. `open_to` is the only port open to the outside."""

    open_to: tuple[str, ...] = Field(
        (), description="networks that may use SSH", examples=["10.0.0.0/8"]
    )
    key_name: str | None = Field(None, description="a key pair the cloud knows; else one is made")
    private_key: str | None = Field(None, description="path of its private half, on this machine")
    through_ssm: bool = Field(False, description="AWS: SSH through Session Manager, no open port")

    @field_validator("open_to")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError(f"{network!r} is not a network; write 203.0.113.0/24") from None
        return value


class Network(Spec):
    internal: bool = Field(False, description="nodes have no public address")
    subnets: tuple[str, ...] = Field((), description="else the default VPC's")
    security_group: str | None = Field(None, description="id of an existing one; else one is made")


class Install(Spec):
    """Where nodes get Sundog from: a wheel next to the compiled file, or a URL."""

    wheel: str = Field("auto", description="auto: the wheel that `compile` builds; or its path")
    url: str | None = Field(None, description="what pip installs instead of a wheel")
    ray: bool = Field(True, description="install Ray and the rest; false: the image has them")
    python: Literal["venv", "image"] = Field(
        "venv",
        description="venv: a Python 3.11 of Sundog's own, whatever the image has; image: the image's "
        "python3 (3.11 or later) and its pip",
    )

    @model_validator(mode="after")
    def _one_python(self) -> Install:
        if not self.ray and self.python == "venv":
            raise ValueError(
                "ray: false: the image's Ray lies in the image's Python; write python: image too"
            )
        return self


class ClusterSpec(Spec):
    """`cluster-configs/specs/*.yaml`."""

    cluster: Name
    cloud: Cloud
    pools: dict[Name, Pool] = Field(min_length=1)
    head: Head = Head()
    budget: UsdHour | None = Field(None, description="dollars an hour, head included")
    idle: DurationS = 300.0
    ssh: Ssh = Ssh()
    network: Network = Network()
    image: Image | None = None
    install: Install = Install()
    setup: tuple[str, ...] = Field((), description="commands on every node, after Sundog is there")
    env: dict[str, str] = Field(default_factory=dict)
    root: str | None = Field(None, description="storage root of the cluster", examples=["s3://b/p"])

    @model_validator(mode="after")
    def _hosts(self) -> ClusterSpec:
        onprem = self.cloud.onprem is not None
        for name, pool in self.pools.items():
            if onprem and not pool.hosts:
                raise ValueError(f"pools.{name}: an on-prem pool names its hosts: [10.0.0.5, …]")
            if not onprem and pool.hosts:
                raise ValueError(f"pools.{name}.hosts: only an on-prem pool has hosts")
        if onprem and not self.head.host:
            raise ValueError("head.host: name the machine that the head runs on")
        return self
