"""What a sweep found: its best trial, the front of several metrics, and tables for people and files.

Reads a book; changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sundog.runs.sweep_book import Trial
from sundog.spec.sweep import SweepSpec


def best_of(trials: Sequence[Trial], spec: SweepSpec) -> Trial | None:
    """The best trial by the metric; with repeats, the best of the configuration whose mean is best.

    A configuration counts when as many of its repeats have a value as of any other.
    """
    groups: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.value is not None:
            groups.setdefault(trial.number, []).append(trial)
    if not groups:
        return None
    sign = 1 if spec.mode == "max" else -1
    most = max(len(g) for g in groups.values())
    whole = [g for g in groups.values() if len(g) == most]
    group = max(whole, key=lambda g: sign * math.fsum(t.value or 0.0 for t in g) / len(g))
    return max(group, key=lambda t: sign * (t.value or 0.0))


def front(trials: Sequence[Trial], spec: SweepSpec) -> list[Trial]:
    """The trials that no other beats in every objective, the best of the metric first."""
    from sundog.runs.sweep_conduct import objectives

    signs = [1 if mode == "max" else -1 for mode in spec.objectives.values()]
    points: list[tuple[Trial, list[float]]] = []
    for trial in trials:
        row = objectives(trial, spec)
        if row is not None:
            points.append((trial, [s * v for s, v in zip(signs, row, strict=True)]))
    out = [(t, p) for t, p in points if not any(dominates(q, p) for _, q in points)]
    return [t for t, _ in sorted(out, key=lambda item: -item[1][0])]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere worse and somewhere better; higher is better everywhere."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def rung(trial: Trial, spec: SweepSpec) -> int | None:
    """How many cuts of successive halving the trial has passed; None where there are no rungs, or
    several brackets, whose rungs differ."""
    asha = spec.scheduler.asha
    if asha is None or asha.brackets > 1:
        return None
    if trial.report < asha.grace:
        return 0
    return 1 + int(math.log(trial.report / asha.grace) / math.log(asha.eta) + 1e-9)


def cells(trials: Sequence[Trial], spec: SweepSpec) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) with plain values: what is exported, and shown after rounding."""
    names = list(spec.space)
    rungs = any(rung(t, spec) is not None for t in trials)
    head = ["trial", *names, spec.metric, *spec.also, "steps", *(["rung"] if rungs else [])]
    head += ["usd", "node_hours", "state", "why"]
    rows: list[list[Any]] = []
    for t in trials:
        measured = {**t.metrics, "seconds": t.node_s, "usd": t.whole_usd}
        row: list[Any] = [t.name, *(t.shown.get(n) for n in names), t.value]
        row += [measured.get(n) for n in spec.also]
        row += [f"{t.step}/{t.steps}", *([rung(t, spec)] if rungs else [])]
        rows.append([*row, t.usd, t.node_hours, t.state, t.why])
    return head, rows


def table(trials: Sequence[Trial], best: Trial | None, spec: SweepSpec) -> list[str]:
    """The trials as aligned lines, the best one marked, and a last line that sums up."""
    head, rows = cells(trials, spec)
    drop = {"usd"} if all(t.usd is None for t in trials) else {"node_hours"}
    drop -= set(spec.also)
    keep = [i for i, name in enumerate(head) if name not in drop]
    shown = [["", *(_title(head[i]) for i in keep)]]
    for trial, row in zip(trials, rows, strict=True):
        mark = "*" if trial is best else ""
        shown.append([mark, *(_short(head[i], row[i]) for i in keep)])
    widths = [max(len(r[i]) for r in shown) for i in range(len(shown[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in shown]
    return [*lines, summary(trials, best, spec)]


def summary(trials: Sequence[Trial], best: Trial | None, spec: SweepSpec) -> str:
    from sundog.runs.sweep_conduct import money

    early = sum(t.state == "stopped" for t in trials)
    failed = sum(t.state == "failed" for t in trials)
    known = [t.usd for t in trials if t.usd is not None]
    unpriced = sum(t.unpriced_hours for t in trials)
    spent = money(sum(known) if known else None, sum(t.node_hours for t in trials), unpriced)
    parts = [f"{len(trials)} trials", f"{early} stopped early"]
    parts += [f"{failed} failed"] if failed else []
    if best is not None:
        parts.append(f"best {spec.metric} {best.value:.4f} ({best.name})")
    return " · ".join([*parts, spent])


def write(trials: Sequence[Trial], spec: SweepSpec, path: Path) -> None:
    """The trials as CSV or Parquet, by the ending of `path`."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    head, rows = cells(trials, spec)
    columns = {}
    for i, name in enumerate(head):
        columns[name] = _column([row[i] for row in rows], flat=path.suffix == ".csv")
    written = pyarrow.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(written, path)
    else:
        pyarrow.parquet.write_table(written, path)


def _column(values: list[Any], flat: bool) -> Any:
    """An Arrow array; of texts where the values are of several kinds, or nested and to be `flat`."""
    import pyarrow

    kinds = {type(v) for v in values if v is not None}
    mixed = len(kinds) > 1 and not kinds <= {int, float}
    if not mixed and not (flat and kinds & {list, tuple, dict}):
        with suppress(pyarrow.ArrowException, OverflowError):
            return pyarrow.array(values)
    return pyarrow.array([None if v is None else str(v) for v in values])


def _title(name: str) -> str:
    return {"usd": "$", "node_hours": "node-h"}.get(name, name)


def _short(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("usd", "node_hours"):
        return f"{value:.4f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
