"""A service: which model answers, on how many replicas, how fast, and how a new version comes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from sundog.spec.base import Name, Reference, Spec
from sundog.spec.environment import Environment
from sundog.spec.quantity import DurationS, MemoryBytes, Range, Share
from sundog.spec.run import Market, Resources


class Slo(Spec):
    p95: DurationS | None = Field(None, gt=0)
    p99: DurationS | None = Field(None, gt=0)
    first: DurationS | None = Field(
        None,
        gt=0,
        description="until the first part of an answer that streams (time to first token)",
    )

    @property
    def whole_s(self) -> float | None:
        """The tightest limit on a whole answer."""
        return min((limit for limit in (self.p95, self.p99) if limit is not None), default=None)


KNOWN_SIGNALS = ("cpu", "gpu", "gpu-memory")


class Signal(Spec):
    """Another measure of load; replicas grow in proportion to value / target, as Kubernetes' HPA."""

    name: Name
    target: float = Field(gt=0, description="the value to hold the signal at")
    query: str | None = Field(
        None,
        description="PromQL; $service, $version and $app are filled in. Not needed for cpu and gpu "
        "(cores and devices in use, per replica) and gpu-memory (bytes per replica)",
        examples=['avg(vllm:kv_cache_usage_perc{model_name="$service"})'],
    )

    @model_validator(mode="after")
    def _asks(self) -> Signal:
        if self.query is None and self.name not in KNOWN_SIGNALS:
            known = ", ".join(KNOWN_SIGNALS)
            raise ValueError(f"signal {self.name} needs a query (PromQL); without one: {known}")
        return self


class Capture(Spec):
    """Which requests and answers are kept below the storage root, for drift and for people."""

    share: Share = Field(0.0, description="of the requests; 0: none", examples=["1%"])
    leave_out: tuple[str, ...] = Field(
        (), description="inputs and outputs whose values are not kept"
    )


class Rollout(Spec):
    """How a new version takes over from the running one."""

    strategy: Literal["all-at-once", "canary", "blue-green", "ab", "shadow"] = "all-at-once"
    steps: tuple[Share, ...] = Field(
        (), description="canary: shares of traffic, rising", examples=[["1%", "5%", "25%", "50%"]]
    )
    guards: tuple[Literal["errors", "latency", "answers", "feedback"], ...] = ("errors", "latency")
    every: DurationS = Field(120.0, description="the least time at each step")
    patience: DurationS = Field(3600.0, description="without a verdict by then: inconclusive")
    share: Share = Field(0.5, description="ab: the new version's share of traffic")
    sticky: str | None = Field(
        None,
        description="who stays with one version: 'key' (the API key) or 'header:<name>'",
        pattern=r"^(key|header:[A-Za-z0-9-]+)$",
    )
    differ: Share = Field(0.02, description="answers that may differ from the running version's")
    tolerance: float = Field(
        0.01, ge=0, description="how far numbers may be apart, relatively, and count as equal"
    )
    floor: Share = Field(
        0.0005, gt=0, lt=0.5, description="a rate of errors that is too low to matter"
    )
    requests: int = Field(50, ge=1, description="the least number of requests at each step")
    standby: DurationS = Field(3600.0, description="blue-green: how long the old one stays warm")
    webhook: str | None = Field(None, description="URL told when a rollout ends or reverts")

    @model_validator(mode="after")
    def _steps_add_up(self) -> Rollout:
        if self.steps and self.strategy != "canary":
            raise ValueError(f"steps belong to a canary, not to {self.strategy!r}; leave them out")
        shown = ", ".join(f"{s:.4g}" for s in self.steps)
        if any(not 0 < step < 1 for step in self.steps):
            raise ValueError(
                f"steps [{shown}] must lie between 0% and 100%, both excluded; "
                "100% follows the last step by itself"
            )
        if any(b <= a for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps [{shown}] must rise; write [1%, 5%, 25%, 50%]")
        if not 0 < self.share < 1:
            raise ValueError("share must lie between 0% and 100%, both excluded; write 50%")
        if self.strategy == "shadow" and "feedback" in self.guards:
            raise ValueError(
                "feedback cannot guard a shadow: nobody gets the mirrored answers; "
                "guard it by errors, latency and answers"
            )
        if not self.guards and self.strategy in ("canary", "blue-green", "shadow"):
            raise ValueError(
                f"a {self.strategy} without guards would judge nothing; name at least one"
            )
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ValueError(f"webhook {self.webhook!r} is not a URL; write https://…")
        if len(set(self.guards)) < len(self.guards):
            raise ValueError("guards: each guard once")
        return self


class Places(Resources):
    """What one replica needs, and on which nodes it may be."""

    market: Market = "any"
    labels: dict[str, str] = Field(
        default_factory=dict, description="of its node, as Ray has them",
        examples=[{"sundog.pool": "web"}],
    )  # fmt: skip


class ServiceSpec(Environment):
    """`args` of an application in `deployments/*.yaml`."""

    service: Name = Field(description="the name in the URL: /v2/models/<service>/infer")
    model: Reference = Field(description="name@version or name@alias", examples=["digits@champion"])
    process: Reference | None = Field(
        None,
        description="name@version of a registered class with `before(inputs)`, `after(outputs)` or both, "
        "run in the replica around the model; its signature is what clients send and get",
        examples=["digits-pictures@1"],
    )
    replicas: Range = Range(1, 1)
    keep_warm: DurationS = Field(
        600.0, description="replicas 0..n: how much idle time of a replica a cold start is worth"
    )
    resources: Places = Places(cpus=0)
    slo: Slo = Slo()
    signals: tuple[Signal, ...] = Field(
        (),
        description="what replicas follow beside requests",
        examples=[[{"name": "gpu", "target": 0.7}]],
    )
    rollout: Rollout = Rollout()
    capture: Capture = Capture()
    deadline: DurationS = Field(
        30.0, gt=0, description="how long a request may take, queueing included"
    )
    hold: DurationS = Field(
        10.0,
        description="how long a request waits while no replica is there, such as after the only one "
        "died; then 503 with Retry-After",
    )
    queue: int = Field(1000, ge=1, description="requests that may wait; more are refused with 503")
    batch: int = Field(
        64, ge=1, description="rows of waiting requests in one call of the model; 1: never stacked"
    )
    max_body: MemoryBytes = Field(32 * 2**20, gt=0)
    idempotent: bool = Field(
        True,
        description="asking twice is harmless: a lost call is asked again. false: no call is ever "
        "sent twice, and none is stacked with others",
    )
    allow_code: bool = Field(
        False, description="let a python model run its own code in the replica"
    )
    root: str | None = Field(None, description="storage root; else the cluster's")

    @field_validator("replicas")
    @classmethod
    def _bounded(cls, value: Range) -> Range:
        if value.high is None or value.high < 1:
            raise ValueError(
                f"replicas {value} needs an upper end of at least 1; write {value.low}..4"
            )
        return value

    @field_validator("process")
    @classmethod
    def _numbered(cls, value: str | None) -> str | None:
        if value is not None and not value.partition("@")[2].isdigit():
            raise ValueError(
                f"{value!r} has to name its version by number, such as {value.partition('@')[0]}@1: "
                "replicas are replaced when it changes"
            )
        return value

    @model_validator(mode="after")
    def _asked_once(self) -> ServiceSpec:
        if not self.idempotent and self.rollout.strategy == "shadow":
            raise ValueError(
                "rollout.strategy shadow asks each request of both versions, which idempotent: "
                "false forbids; write canary, or idempotent: true"
            )
        return self
