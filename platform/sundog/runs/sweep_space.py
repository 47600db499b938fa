"""Configurations of a sweep: drawn by seed and number alone, so that the same ones come again.

Pure: a draw depends on nothing but the spec. Decides nothing about which to try.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from sundog.spec.sweep import Choice, Domain, Int, Log, SweepSpec, Uniform

# What a resubmission may not change: the trials of before would not belong to it.
_FIXED = ("space", "metric", "mode", "also", "searcher", "scheduler", "repeats", "seed")
# Of the run: where it runs and what it may take is free.
_FREE_RUN = (
    "root", "env", "secrets", "requirements", "resources", "register", "max_usd", "max_time",
    "max_failures", "checkpoint", "market", "workers", "webhook",
)  # fmt: skip


def draw(spec: SweepSpec, number: int) -> dict[str, Any]:
    """The configuration of random trial `number`; parameters whose `when` does not hold are left
    out."""
    rng = random.Random(f"sundog-sweep:{spec.seed}:{number}")
    values: dict[str, Any] = {}
    for name, domain in spec.space.items():
        value = at(domain, rng.random())  # always drawn, so that conditions shift nothing
        if domain.applies(values):
            values[name] = value
    return values


def at(domain: Domain, unit: float) -> Any:
    """The value at `unit` in [0, 1) of a domain."""
    match domain:
        case Uniform(uniform=(low, high)):
            return low + unit * (high - low)
        case Log(log=(low, high)):
            return math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        case Int(int_=(first, last)):
            return first + int(unit * (last - first + 1))
        case Choice(choice=values):
            return values[int(unit * len(values))]


def grid(spec: SweepSpec) -> list[dict[str, Any]]:
    """Every combination of choices, the first parameter changing slowest, none twice."""
    names = list(spec.space)
    choices = [d.choice if isinstance(d, Choice) else () for d in spec.space.values()]
    out: list[dict[str, Any]] = []
    for combination in itertools.product(*choices):
        values: dict[str, Any] = {}
        for name, value in zip(names, combination, strict=True):
            if spec.space[name].applies(values):
                values[name] = value
        if values not in out:
            out.append(values)
    return out


def holds(spec: SweepSpec, values: Mapping[str, Any]) -> bool:
    """Whether `values` could have been drawn from the space."""
    seen: dict[str, Any] = {}
    for name, domain in spec.space.items():
        if domain.applies(seen) != (name in values):
            return False
        if name in values:
            seen[name] = values[name]
            if not _within(domain, values[name]):
                return False
    return len(seen) == len(values)


def _within(domain: Domain, value: Any) -> bool:
    if isinstance(domain, Choice):
        return value in domain.choice
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    match domain:
        case Uniform(uniform=(low, high)) | Log(log=(low, high)):
            return low <= value <= high
        case Int(int_=(first, last)):
            return first <= value <= last


def identity(spec: SweepSpec) -> dict[str, Any]:
    """What makes two submissions the same search, for JSON."""
    whole = spec.model_dump(mode="json")
    run = {k: v for k, v in whole["run"].items() if k not in _FREE_RUN}
    if spec.run.workers.high != 1:
        run["workers"] = whole["run"]["workers"]  # the most there may be is how a batch is cut
    return {**{name: whole[name] for name in _FIXED}, "run": run}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between two identities, such as `space.lr: … → …`; "" when nothing did."""
    changes: list[str] = []
    for name in [*now, *(n for n in before if n not in now)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys = [k for k in dict.fromkeys([*old, *new]) if old.get(k) != new.get(k)]
            changes += [f"{name}.{k}: {old.get(k)} → {new.get(k)}" for k in keys]
        else:
            changes.append(f"{name}: {old} → {new}")
    return "; ".join(changes)
