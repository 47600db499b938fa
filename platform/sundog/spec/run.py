"""A run: what to train, on which data, how long, on how many workers."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sundog.spec.base import Name, RecipeName, Reference, Spec
from sundog.spec.cuts import micro_batches
from sundog.spec.environment import Environment
from sundog.spec.quantity import DurationS, Interval, MemoryBytes, MicroBatch, Range, Usd, Warmup

Market = Literal["any", "spot-first", "spot-only", "on-demand"]


class Resources(Spec):
    """What one worker needs."""

    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    gpu: str | None = Field(None, description="GPU type, as Ray labels it", examples=["A10G"])
    memory: MemoryBytes | None = None

    @model_validator(mode="after")
    def _one_gpu(self) -> Resources:
        # Naming a GPU type without a number means one of it.
        if self.gpu and self.gpus == 0:
            return self.model_copy(update={"gpus": 1.0})
        return self


class Schedule(Spec):
    """How the learning rate goes on from what the recipe's optimizer was built with."""

    shape: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Warmup = Field(0.0, description="a share of the run's samples, or a number of them")
    end: float = Field(0.0, ge=0, le=1, description="of the learning rate, at the last sample")

    def warmup_samples(self, total: int) -> int:
        """Samples of warm-up in a run of `total`."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * total)

    @model_validator(mode="after")
    def _an_end_to_go_to(self) -> Schedule:
        if self.shape == "constant" and self.end:
            raise ValueError(
                "schedule: end has no effect on a constant rate; write shape: linear or cosine"
            )
        return self


class CheckpointPolicy(Spec):
    every: Interval = "auto"
    keep: int = Field(3, ge=1)
    best: str | None = Field(
        None, description="keep the best model too, by a validation metric, and register that one",
        pattern=r"^(max|min) \w+$", examples=["max accuracy", "min val_loss"],
    )  # fmt: skip


_RULE = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?[\d.]+(?:[eE][-+]?\d+)?)\s*")


class RegisterRule(Spec):
    """Register the model when the run ends, if its metrics are good enough."""

    as_: Name = Field(alias="as", description="the model's name in the registry")
    if_: str | None = Field(None, alias="if", examples=["val_loss < 1.9"])
    alias: Name | None = Field(None, description="an alias to point at the new version")

    @field_validator("if_")
    @classmethod
    def _a_rule(cls, value: str | None) -> str | None:
        if value is not None and not _RULE.fullmatch(value):
            raise ValueError(f"{value!r} is not a rule; write one comparison: val_loss < 1.9")
        return value

    def admits(self, metrics: dict[str, float]) -> tuple[bool, str]:
        """Whether these metrics are good enough, and why."""
        match = _RULE.fullmatch(self.if_) if self.if_ else None
        if match is None:
            return True, "no condition"
        name, operator, bound = match[1], match[2], float(match[3])
        if name not in metrics:
            return False, f"the run reported no metric {name!r}, only {', '.join(sorted(metrics))}"
        value = metrics[name]
        good = {
            "<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound
        }[operator]  # fmt: skip
        return good, f"{name} is {value:.4g}, the rule is {self.if_}"

    def not_worse(self, metrics: dict[str, float], than: dict[str, float]) -> tuple[bool, str]:
        """Whether an alias may move from a version with `than` to one with `metrics`, and why.

        Judged by the rule's own metric: the one that says what good means. Without a rule it moves.
        """
        match = _RULE.fullmatch(self.if_) if self.if_ else None
        if match is None or match[1] not in metrics or match[1] not in than:
            return True, "no metric to compare"
        name, new, old = match[1], metrics[match[1]], than[match[1]]
        good = new >= old if match[2].startswith(">") else new <= old
        return good, f"{name} {new:.4g} against {old:.4g}"


class RunSpec(Environment):
    """`jobs/specs/*.yaml` of `jobs/train.py`."""

    run: Name = Field(description="the run's name; its id is this and a number")
    recipe: RecipeName = Field(description="module:Name", examples=["jobs.recipes.digits:Digits"])
    data: Reference | None = Field(None, description="a dataset of the storage root, name@version")
    workers: Range = Range(1, 1)
    resources: Resources = Resources()
    batch: int = Field(64, ge=1, description="global batch, whatever the number of workers")
    micro_batch: MicroBatch | None = Field(
        None, description="rows in one forward pass; auto: the most that fit into memory"
    )
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    layout: Literal["ddp", "fsdp"] = Field(
        "ddp", description="every worker holds the model, or a shard of it"
    )
    clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient")
    schedule: Schedule = Field(Schedule(), description="of the learning rate")
    compile: bool = Field(False, description="torch.compile")
    recompute: bool = Field(
        False, description="compute the blocks' activations again instead of keeping them"
    )
    exact: bool = Field(True, description="same curve, bit for bit, at any number of workers")
    evaluate: Interval = Field("auto", description="how often the validation split is measured")
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    max_failures: int = Field(
        3,
        ge=-1,
        description="worker failures in a row, without a step further, that are borne; -1: any",
    )
    market: Market = "any"
    max_usd: Usd | None = None
    max_time: DurationS | None = None
    params: dict[str, Any] = Field(
        default_factory=dict, description="what the recipe is built with"
    )
    register_: RegisterRule | None = Field(None, alias="register")
    root: str | None = Field(None, description="storage root; else SUNDOG_ROOT, else the cluster's")
    init_from: Reference | None = Field(
        None, description="a registered model whose weights to begin with", examples=["gpt-docs@3"]
    )
    webhook: str | None = Field(
        None, description="told how the run ended: an address, or env:NAME that holds it",
        pattern=r"^(https?://|env:\w)",
    )  # fmt: skip
    profile: int | None = Field(
        None, ge=1, le=100, description="steps to trace with torch's profiler, once"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="of a worker's device at this precision, for MFU; else from a table"
    )

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, value: Range) -> Range:
        if value.low < 1:
            raise ValueError(
                f"{value} workers: a run needs at least one; write 1..{value.high or 8}"
            )
        if value.high is None:
            raise ValueError(f"{value} has no upper end; write {value.low}..{value.low * 4}")
        return value

    @field_validator("evaluate")
    @classmethod
    def _by_steps(cls, value: str | int) -> str | int:
        if value != "auto" and not isinstance(value, int):
            raise ValueError(
                f"evaluate: {value}: when it evaluates would depend on how fast the machine is; "
                "write steps: evaluate: 200 steps"
            )
        return value

    @model_validator(mode="after")
    def _shares(self) -> RunSpec:
        """The batch can be cut for the most workers, into pieces that are worth computing alone."""
        rows = self.micro_batch if isinstance(self.micro_batch, int) else None
        if self.micro_batch == "auto":
            rows = 1
        micro_batches(self.batch, rows, self.workers.high or 1, self.exact)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> RunSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("say how long: exactly one of steps and epochs")
        if self.layout == "fsdp" and self.exact:
            raise ValueError(
                "layout: fsdp adds gradients in the order of its shards, which changes with the "
                "number of workers; write exact: false with it"
            )
        if self.layout == "fsdp" and (self.init_from or self.checkpoint.best):
            raise ValueError(
                "layout: fsdp cannot begin from init_from nor keep checkpoint.best yet; "
                "leave them out, or write layout: ddp"
            )
        if self.layout == "fsdp" and self.precision == "fp16":
            raise ValueError("layout: fsdp has no loss scale for fp16; write precision: bf16")
        return self
