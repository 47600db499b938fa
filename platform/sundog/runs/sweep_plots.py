"""Pictures of a sweep as SVG or PNG files: what was tried, what it bought, which parameter mattered.

Draws what the journal says; computes nothing else but parameter importance, which is Optuna's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sundog.errors import SundogError
from sundog.runs.sweep_book import Trial
from sundog.runs.sweep_conduct import objectives
from sundog.runs.sweep_table import front
from sundog.spec.sweep import Choice, Log, SweepSpec

_ABSENT = -0.12  # where a trial without a parameter passes its axis
_STATES = {"finished": "#1b6ca8", "stopped": "#b8b8b8", "failed": "#c0392b"}


def draw(
    spec: SweepSpec,
    trials: Sequence[Trial],
    journal: Iterable[dict[str, Any]],
    folder: Path,
    kind: str = "svg",
) -> dict[str, str]:
    """Write the pictures into `folder`. Picture -> its path, or why there is none.

    SundogError without matplotlib, or when no trial reported.
    """
    try:
        import matplotlib
    except ImportError:
        raise SundogError(
            "pictures need matplotlib, which is not installed", "pip install 'sundog[sweeps]'"
        ) from None
    matplotlib.use("svg" if kind == "svg" else "agg")
    shown = [t for t in trials if t.value is not None]
    if not shown:
        raise SundogError(f"no trial reported {spec.metric!r} yet", "wait for the first report")
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Any], str | None]] = {
        "parallel": lambda figure: _parallel(figure, spec, shown),
        "spend": lambda figure: _spend(figure, spec, list(journal)),
        "importance": lambda figure: _importance(figure, spec, shown),
    }
    if spec.also:
        pictures["front"] = lambda figure: _front(figure, spec, shown)
    return {name: _save(paint, folder / f"{name}.{kind}") for name, paint in pictures.items()}


def _save(paint: Callable[[Any], str | None], path: Path) -> str:
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(8, 4.5))
    try:
        fault = paint(figure)
        if fault:
            return fault
        figure.savefig(path, bbox_inches="tight", dpi=150)
        return str(path)
    finally:
        plt.close(figure)


def _parallel(figure: Any, spec: SweepSpec, trials: Sequence[Trial]) -> None:
    """A line a trial over all parameters and the metric, coloured by the metric."""
    import matplotlib.pyplot as plt

    names = [*spec.space, spec.metric]
    values = [t.value or 0.0 for t in trials]
    norm = plt.Normalize(min(values), max(values))
    colours = plt.get_cmap("viridis" if spec.mode == "max" else "viridis_r")
    axis = figure.subplots()
    scales = [_scale(spec, name, trials) for name in names]
    for trial in sorted(trials, key=lambda t: (t.value or 0.0) * (1 if spec.mode == "max" else -1)):
        row = [*(trial.shown.get(n) for n in spec.space), trial.value]
        heights = [
            _ABSENT if v is None else place(v) for v, (place, _) in zip(row, scales, strict=True)
        ]
        axis.plot(range(len(names)), heights, color=colours(norm(trial.value)), alpha=0.7, lw=1.4)
    for i, (_, ticks) in enumerate(scales):
        if i < len(spec.space) and any(names[i] not in t.shown for t in trials):
            ticks = [*ticks, (_ABSENT, "without")]
        axis.axvline(i, color="0.75", lw=0.8, zorder=0)
        for height, label in ticks:
            axis.text(
                i + 0.02,
                height,
                label,
                fontsize=8,
                va="center",
                color="0.1",
                bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 1},
            )
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.1, len(names) - 0.6)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axis, pad=0.02)
    bar.set_label(spec.metric)
    axis.set_title(f"{spec.sweep}: {len(trials)} trials")


def _scale(
    spec: SweepSpec, name: str, trials: Sequence[Trial]
) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Where a value stands on its axis, 0 to 1, and what is written beside the axis."""
    domain = spec.space.get(name)
    if isinstance(domain, Choice):
        last = max(1, len(domain.choice) - 1)
        ticks = [(i / last, str(v)) for i, v in enumerate(domain.choice)]
        places = {str(v): i / last for i, v in enumerate(domain.choice)}
        return (lambda v: places[str(v)]), ticks
    known = [t.value if domain is None else t.shown.get(name) for t in trials]
    numbers = [float(v) for v in known if v is not None] or [0.0]
    log = isinstance(domain, Log)
    low, high = min(numbers), max(numbers)
    ends = (math.log(low), math.log(high)) if log else (low, high)
    width = (ends[1] - ends[0]) or 1.0

    def place(value: Any) -> float:
        return ((math.log(value) if log else float(value)) - ends[0]) / width

    return place, [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]


def _spend(figure: Any, spec: SweepSpec, journal: Sequence[dict[str, Any]]) -> str | None:
    """Every report over what the sweep had spent by then, and the best so far."""
    reports = [e for e in journal if e["what"] == "report" and e["value"] is not None]
    if not reports:
        return "no report yet"
    dollars = all(e["spent"][0] is not None for e in reports)
    spent = [e["spent"][0 if dollars else 1] for e in reports]
    values = [e["value"] for e in reports]
    best, so_far = values[0], []
    for value in values:
        best = max(best, value) if spec.mode == "max" else min(best, value)
        so_far.append(best)
    axis = figure.subplots()
    axis.plot(spent, values, "o", ms=3.5, color="0.6", label="a report")
    axis.step(spent, so_far, where="post", color="#1b6ca8", lw=2, label="best so far")
    unit = "dollars" if dollars else "node-hours (these nodes have no price)"
    if spec.max_usd is not None and dollars:
        if spec.max_usd < 2 * spent[-1]:
            axis.axvline(spec.max_usd, color="#c0392b", ls="--", lw=1, label="budget")
        else:  # it would press everything else against the left
            unit += f" (the budget is ${spec.max_usd:g})"
    axis.set_xlabel(unit)
    axis.set_ylabel(spec.metric)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return None


def importance(spec: SweepSpec, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of the metric's variation that each parameter explains, the largest first.

    Functional ANOVA (Hutter et al., 2014) by Optuna, over the parameters that all trials have.
    Empty where there are too few trials.
    """
    from sundog.runs.sweep_search import Modelled

    plain = spec.model_copy(update={"also": {}})
    study = Modelled(plain.model_copy(update={"searcher": _tpe()}))
    learnt = sum(study.learn(t.shown, [t.value]) for t in trials if t.value is not None)
    varied = {n for t in trials for n in t.shown if len({str(u.shown.get(n)) for u in trials}) > 1}
    if learnt < 4 or len({t.value for t in trials}) < 2 or not varied:
        return {}
    return study.importances()


def _tpe() -> Any:
    from sundog.spec.sweep import OptunaOptions, Searcher

    return Searcher(optuna=OptunaOptions())


def _importance(figure: Any, spec: SweepSpec, trials: Sequence[Trial]) -> str | None:
    found = importance(spec, trials)
    if not found:
        return "too few trials to say which parameter mattered"
    axis = figure.subplots()
    names = list(found)[::-1]
    axis.barh(names, [found[n] for n in names], color="#1b6ca8")
    for i, name in enumerate(names):
        axis.text(found[name] + 0.01, i, f"{found[name]:.0%}", va="center", fontsize=9)
    axis.set_xlim(0, max(found.values()) * 1.15 + 0.02)
    axis.set_xlabel(f"share of the variation of {spec.metric} (fANOVA, {len(trials)} trials)")
    axis.spines[["top", "right"]].set_visible(False)
    return None


def _front(figure: Any, spec: SweepSpec, trials: Sequence[Trial]) -> str | None:
    """The first two objectives of every trial, and those that none beats."""
    points = [(t, o) for t in trials if (o := objectives(t, spec)) is not None]
    if not points:
        return f"no trial has all of {', '.join(spec.objectives)}"
    two = spec.model_copy(update={"also": dict(list(spec.also.items())[:1])})
    best = sorted(objectives(t, two) or [] for t in front([t for t, _ in points], two))
    names, axis = list(spec.objectives), figure.subplots()
    for state, colour in _STATES.items():
        some = [o for t, o in points if t.state == state]
        if some:
            axis.plot([o[1] for o in some], [o[0] for o in some], "o", ms=5, color=colour,
                      alpha=0.8, label=state)  # fmt: skip
    axis.plot([o[1] for o in best], [o[0] for o in best], "-", color="#e08e0b", lw=1.5,
              marker="o", mfc="none", ms=10, label="front")  # fmt: skip
    axis.set_xlabel(f"{names[1]} ({spec.objectives[names[1]]})")
    axis.set_ylabel(f"{names[0]} ({spec.mode})")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return None
