"""A sweep: a base run, the space of its parameters, how to search it, and what it may cost."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from sundog.spec.base import Name, Spec
from sundog.spec.hours import AnyHours
from sundog.spec.quantity import DurationS, Usd, UsdHour
from sundog.spec.run import RegisterRule, RunSpec

Mode = Literal["max", "min"]
DEFAULT_TRIALS = 16


class Conditional(Spec):
    """What all domains share. `when` makes the parameter part of some configurations only."""

    when: dict[str, Any] = Field(
        default_factory=dict,
        description="only where another parameter has this value (or one of these)",
        examples=[{"optimizer": "sgd"}],
    )

    def applies(self, values: dict[str, Any]) -> bool:
        """Whether the parameter exists beside these `values`."""
        return all(
            name in values and values[name] in (wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in self.when.items()
        )


class Uniform(Conditional):
    uniform: tuple[float, float]


class Log(Conditional):
    log: tuple[float, float] = Field(description="log-uniform between two positive numbers")


class Int(Conditional):
    int_: tuple[int, int] = Field(alias="int", description="whole numbers, both ends included")


class Choice(Conditional):
    choice: tuple[Any, ...] = Field(min_length=1)


Domain = Uniform | Log | Int | Choice


class FifoOptions(Spec):
    """Every trial to its end."""


class AshaOptions(Spec):
    """Asynchronous successive halving (Li et al., 2018). Rungs count reports."""

    grace: int = Field(1, ge=1, description="reports before the first cut")
    eta: float = Field(3, gt=1, description="one of so many goes on at a rung")
    brackets: int = Field(1, ge=1)


class HalvingOptions(Spec):
    """Sundog's own: halving by outlook per dollar; nothing is stopped for good until the end."""

    grace: int = Field(2, ge=1, description="reports before the first cut")
    keep: float = Field(0.5, gt=0, le=1, description="share that goes on after the grace")
    steepness: float = Field(1.5, ge=0)
    thrift: float = Field(0, ge=0, description="1: a trial twice as dear has half the chance")


class HyperBandOptions(Spec):
    """Synchronous HyperBand (Li et al., 2016). A trial waits until its bracket has reported."""

    eta: float = Field(3, gt=1)


class MedianOptions(Spec):
    """Stops what is worse than the median of the others (Golovin et al., 2017)."""

    grace: int = Field(2, ge=1)
    least: int = Field(3, ge=1, description="trials that must have come as far")


class PbtOptions(Spec):
    """Population-based training (Jaderberg et al., 2017): the weak copy the strong, checkpoint
    and all."""

    every: int = Field(2, ge=1, description="reports between two exchanges")
    mutate: tuple[str, ...] = Field(
        min_length=1, description="parameters that may change in mid-run; none that change shapes"
    )
    quantile: float = Field(0.25, gt=0, le=0.5)
    resample: float = Field(0.25, ge=0, le=1)


class OptunaOptions(Spec):
    sampler: Literal["tpe", "gp", "nsga2"] = "tpe"
    multivariate: bool = Field(False, description="TPE: model parameters jointly")
    startup: int = Field(10, ge=1, description="random trials before the model is asked")


class OneOf(Spec):
    """Exactly one of the fields; its bare name stands for it with all defaults."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in cls.model_fields:
            near = get_close_matches(value, cls.model_fields, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{value!r}: {hint}one of {', '.join(cls.model_fields)}")
        return {value: {}}

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.given) != 1:
            raise ValueError(f"name exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def given(self) -> list[str]:
        return [n for n in type(self).model_fields if getattr(self, n) is not None]

    @property
    def name(self) -> str:
        return self.given[0]

    @model_serializer(mode="wrap")
    def _short(self, handler: Any) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        return {"anyOf": [{"enum": list(cls.model_fields)}, handler(schema)]}


class Scheduler(OneOf):
    fifo: FifoOptions | None = None
    asha: AshaOptions | None = None
    halving: HalvingOptions | None = None
    hyperband: HyperBandOptions | None = None
    median: MedianOptions | None = None
    pbt: PbtOptions | None = None


class RandomOptions(Spec):
    """Drawn by the seed and the trial's number alone."""


class GridOptions(Spec):
    """Every combination of the choices, once."""


class Searcher(OneOf):
    random: RandomOptions | None = None
    grid: GridOptions | None = None
    optuna: OptunaOptions | None = None


_MEASURED = ("usd", "seconds")
# Of the run: what is the sweep's own business, and what all trials must have alike.
_OF_THE_SWEEP = ("max_usd", "max_time", "profile")
_ALIKE = (
    "run", "recipe", "data", "workers", "resources", "layout", "market", "env", "secrets",
    "requirements", "root", "register", "register_", "params", "webhook", "init_from", *_OF_THE_SWEEP,
)  # fmt: skip


class SweepSpec(Spec):
    """`jobs/specs/*.yaml` of `jobs/sweep.py`."""

    sweep: Name
    run: RunSpec = Field(description="the run that every trial varies")
    space: dict[str, Domain] = Field(
        min_length=1, description="parameter -> {uniform|log|int: [low, high]} or {choice: […]}"
    )
    metric: str = Field(description="a metric that the recipe reports", examples=["accuracy"])
    mode: Mode = "max"
    also: dict[str, Mode] = Field(
        default_factory=dict,
        description="further metrics of the Pareto front; usd and seconds are measured",
        examples=[{"usd": "min"}],
    )
    trials: int | None = Field(
        None,
        ge=1,
        description="configurations, at most: 16, or all of a grid, where it is left out",
    )
    repeats: int = Field(1, ge=1, description="runs of each configuration, with seeds of their own")
    concurrent: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="trials at once; auto: as many as the cluster holds"
    )
    searcher: Searcher = Searcher(random=RandomOptions())
    scheduler: Scheduler = Scheduler(fifo=FifoOptions())
    seed: int = 0
    warm_start: tuple[str, ...] = Field((), description="earlier sweeps (run ids) of this space")
    max_usd: Usd | None = Field(None, description="stops the sweep; it reports the best so far")
    max_time: DurationS | None = Field(None, description="of all submissions of this run together")
    hours: AnyHours = Field(
        (), description="when trials may run, such as the nights; outside of them the sweep pauses",
        examples=[{"from": "22:00", "to": "06:00", "zone": "Europe/Berlin", "days": "mon..fri"}],
    )  # fmt: skip
    max_failed: int = Field(5, ge=1, description="failed trials that end the sweep")
    usd_node_hour: UsdHour | None = Field(
        None, description="what an hour of a node costs that has no price of its own"
    )
    register_: RegisterRule | None = Field(None, alias="register")

    @property
    def objectives(self) -> dict[str, Mode]:
        """The metric and its mode, then those of `also`."""
        return {self.metric: self.mode, **self.also}

    @model_validator(mode="after")
    def _a_run_to_vary(self) -> SweepSpec:
        for name in _OF_THE_SWEEP:
            if getattr(self.run, name) is not None:
                what = "a sweep does not have it" if name == "profile" else "write it beside metric"
                raise ValueError(f"run.{name}: {what}, and leave it out here")
        if self.run.layout == "fsdp":
            raise ValueError("run.layout: trials cannot be sharded yet; write layout: ddp")
        return self

    def _a_field(self, name: str) -> None:
        field = name.removeprefix("run.")
        if field == name:
            return
        free = [n for n in type(self.run).model_fields if n not in _ALIKE]
        if field not in free:
            known = field in type(self.run).model_fields
            near = get_close_matches(field, free, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"space.{name}: {'all trials have it alike' if known else f'{hint}a run has none'}; "
                f"what may vary: {', '.join(free)}"
            )

    @model_validator(mode="after")
    def _a_space(self) -> SweepSpec:
        for number, (name, domain) in enumerate(self.space.items()):
            self._a_field(name)
            self._a_domain(name, domain)
            for other in domain.when:
                earlier = list(self.space)[:number]
                if other not in earlier:
                    raise ValueError(
                        f"space.{name}.when: {other!r} is no parameter above it"
                        + (f"; there are {', '.join(earlier)}" if earlier else "")
                    )
                self._a_condition(name, other, domain.when[other])
            self._can_be(name)
        return self

    def _can_be(self, name: str) -> None:
        """Whether some configuration has the parameter: all conditions above it together."""
        wanted: dict[str, tuple[str, list[Any]]] = {}  # parameter -> (who asks, values left)
        ask = [name]
        while ask:
            asking = ask.pop()
            for other, values in self.space[asking].when.items():
                who, left = wanted.get(other, (asking, None))
                some = values if isinstance(values, list) else [values]
                both = some if left is None else [v for v in left if v in some]
                if not both:
                    raise ValueError(
                        f"space.{name}.when: no configuration ever has it, for {who} and {asking} "
                        f"want {other} to be different things"
                    )
                wanted[other] = asking, both
                ask.append(other)

    def _a_domain(self, name: str, domain: Domain) -> None:
        if isinstance(domain, Choice):
            if any(isinstance(v, float) and not math.isfinite(v) for v in domain.choice):
                raise ValueError(f"space.{name}: a choice must be finite, not NaN or infinity")
            return
        match domain:
            case Uniform(uniform=bounds) | Log(log=bounds) | Int(int_=bounds):
                low, high = bounds
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                f"space.{name}: [{low}, {high}] has no end; both must be finite numbers"
            )
        if low >= high:
            raise ValueError(
                f"space.{name}: [{low}, {high}] is empty; the first must be the smaller"
            )
        if isinstance(domain, Log) and low <= 0:
            raise ValueError(f"space.{name}: a log scale starts above 0, not at {low}")
        if self.searcher.grid:
            raise ValueError(f"space.{name}: a grid needs choices; write {{choice: […]}}")

    def _a_condition(self, name: str, other: str, wanted: Any) -> None:
        domain = self.space[other]
        if not isinstance(domain, Choice):
            raise ValueError(f"space.{name}.when: {other} is no choice, so it cannot be waited for")
        if wanted == []:
            raise ValueError(f"space.{name}.when: {other} is one of none, so {name} never is")
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if value not in domain.choice:
                raise ValueError(
                    f"space.{name}.when: {other} is never {value!r}; it is one of "
                    f"{', '.join(map(str, domain.choice))}"
                )

    @model_validator(mode="after")
    def _no_contradiction(self) -> SweepSpec:
        if self.metric in self.also:
            raise ValueError(f"also: {self.metric} is the metric already")
        if self.metric in _MEASURED:
            raise ValueError(f"metric: {self.metric} may only stand in also: it needs no recipe")
        if self.warm_start and self.searcher.optuna is None:
            raise ValueError("warm_start: only searcher: optuna learns from earlier sweeps")
        if self.repeats > 1 and not self.scheduler.fifo:
            raise ValueError("repeats: each must run to its end; write scheduler: fifo")
        if self.scheduler.pbt:
            self._a_population(self.scheduler.pbt)
        return self

    def _a_population(self, options: PbtOptions) -> None:
        for name in options.mutate:
            if name not in self.space:
                raise ValueError(
                    f"scheduler.pbt.mutate: {name!r} is no parameter of the space: "
                    f"{', '.join(self.space)}"
                )
            if name.startswith("run."):
                raise ValueError(f"scheduler.pbt.mutate: {name} of a run is fixed when it begins")
        if not self.searcher.random:
            raise ValueError("scheduler.pbt: a population starts at random; drop the searcher")
