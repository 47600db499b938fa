"""A service: which model answers, on how many replicas, how fast, and how a new version comes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sundog.spec.base import Name, Reference, Spec
from sundog.spec.quantity import DurationS, MemoryBytes, Range, Share
from sundog.spec.run import Resources


class Slo(Spec):
    p95: DurationS | None = None
    p99: DurationS | None = None


class Rollout(Spec):
    strategy: Literal["all-at-once", "canary", "blue-green", "ab", "shadow"] = "all-at-once"
    steps: tuple[Share, ...] = ()
    guards: tuple[Literal["errors", "latency", "answers", "feedback"], ...] = ("errors", "latency")


class ServiceSpec(Spec):
    """`args` of an application in `deployments/*.yaml`."""

    service: Name = Field(description="the name in the URL: /v2/models/<service>/infer")
    model: Reference = Field(description="name@version or name@alias", examples=["digits@champion"])
    replicas: Range = Range(1, 1)
    resources: Resources = Resources(cpus=0)
    slo: Slo = Slo()
    rollout: Rollout = Rollout()
    deadline: DurationS = Field(30.0, description="how long a request may take, queueing included")
    queue: int = Field(1000, ge=1, description="requests that may wait; more are refused with 503")
    max_body: MemoryBytes = 32 * 2**20
    idempotent: bool = Field(True, description="asking twice is harmless: a lost call may be retried")
    allow_code: bool = Field(False, description="let a python model run its own code in the replica")
    root: str | None = Field(None, description="storage root; else the cluster's")

    @field_validator("replicas")
    @classmethod
    def _bounded(cls, value: Range) -> Range:
        if value.high is None or value.high < 1:
            raise ValueError(f"replicas {value} needs an upper end of at least 1; write {value.low}..4")
        return value
