"""A sweep: a base run, the space of its parameters, and how to search it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sundog.spec.base import Name, Spec
from sundog.spec.quantity import DurationS, Usd
from sundog.spec.run import RegisterRule, RunSpec


class Uniform(Spec):
    uniform: tuple[float, float]


class Log(Spec):
    log: tuple[float, float] = Field(description="log-uniform between two positive numbers")


class Int(Spec):
    int_: tuple[int, int] = Field(alias="int", description="whole numbers, both ends included")


class Choice(Spec):
    choice: tuple[Any, ...] = Field(min_length=1)


Domain = Uniform | Log | Int | Choice


class AshaOptions(Spec):
    grace: int = Field(1, ge=1)
    eta: float = Field(3, gt=1)
    brackets: int = Field(1, ge=1)


class Asha(Spec):
    """Asynchronous successive halving (Li et al., 2018). `grace` and `max` count reports."""

    asha: AshaOptions


class SweepSpec(Spec):
    """`jobs/specs/*.yaml` of `jobs/sweep.py`."""

    sweep: Name
    run: RunSpec = Field(description="the run that every trial varies")
    space: dict[str, Domain] = Field(
        min_length=1, description="parameter -> {uniform|log|int: [low, high]} or {choice: […]}"
    )
    metric: str = Field(description="a metric that the recipe reports", examples=["accuracy"])
    mode: Literal["max", "min"] = "max"
    trials: int = Field(16, ge=1)
    concurrent: int | Literal["auto"] = "auto"
    searcher: Literal["random", "grid", "optuna"] = "random"
    scheduler: Asha | Literal["fifo"] = "fifo"
    seed: int = 0
    max_usd: Usd | None = None
    max_time: DurationS | None = None
    register_: RegisterRule | None = Field(None, alias="register")

    @model_validator(mode="after")
    def _a_space(self) -> SweepSpec:
        for name, domain in self.space.items():
            bounds = (
                next(iter(domain.model_dump().values())) if not isinstance(domain, Choice) else None
            )
            if bounds is None:
                continue
            low, high = bounds
            if low >= high:
                raise ValueError(
                    f"space.{name}: [{low}, {high}] is empty; the first must be the smaller"
                )
            if isinstance(domain, Log) and low <= 0:
                raise ValueError(f"space.{name}: a log scale starts above 0, not at {low}")
            if self.searcher == "grid":
                raise ValueError(f"space.{name}: a grid needs choices; write {{choice: […]}}")
        return self
