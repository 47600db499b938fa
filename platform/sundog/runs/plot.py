"""A picture of a run: loss, workers and goodput over time, and where node-seconds and dollars went.

Draws what the run's record and events say; measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sundog import telemetry
from sundog.errors import NotFound, SpecError, SundogError
from sundog.runs.goodput import LOSSES
from sundog.storage.runs import RunFolder

CHANGES = (telemetry.RUN_RECOVERED, telemetry.RUN_RESIZED, telemetry.RUN_DRAINED)
KINDS = (".svg", ".png", ".pdf")
_COLOURS = {
    "useful": "#2a7f62", "startup": "#c9b458", "restart": "#c05746", "recomputed": "#7b2d26",
    "checkpoint": "#5b7db1", "idle": "#b0b0b0",
    "noticed": "#d9a441", "parked": "#c05746", "gathered": "#8e6c8a", "formed": "#5b7db1",
    "stepped": "#2a7f62", "pause": "#8a8a8a",
}  # fmt: skip
_INK, _FAINT = "#22313f", "#c8ccd0"


@dataclass(frozen=True)
class Story:
    """What is drawn. `points` and `changes` are events in the order of time."""

    run_id: str
    record: Mapping[str, Any]
    points: Sequence[Mapping[str, Any]]
    changes: Sequence[Mapping[str, Any]]

    @property
    def kept(self) -> list[Mapping[str, Any]]:
        """The points of steps that were not computed again later."""
        out: list[Mapping[str, Any]] = []
        least = float("inf")
        for point in reversed(self.points):
            if point["step"] < least:
                out.append(point)
                least = point["step"]
        return out[::-1]

    @property
    def usd_per_node_second(self) -> float | None:
        """On average over the run: what a pause's node-seconds are priced with."""
        hours = self.record.get("node_hours") or 0.0
        usd = self.record.get("usd")
        return usd / hours / 3600 if usd and hours else None


def read(folder: RunFolder) -> Story:
    """NotFound when the run has not trained a step that was recorded."""
    events = folder.events()
    points = [e for e in events if e["event"] == telemetry.RUN_PROGRESS]
    if not points:
        raise NotFound(
            f"{folder.run_id} has no curve to draw", "only training runs have one, once they step"
        )
    changes = [e for e in events if e["event"] in CHANGES]
    return Story(folder.run_id, folder.record(), points, changes)


def draw(story: Story, path: Path) -> None:
    """Write the picture; its kind is the file's ending. SundogError without matplotlib."""
    if path.suffix not in KINDS:
        raise SpecError(f"{path}: {path.suffix or 'no ending'} is no kind of picture",
                        f"end it in {', '.join(KINDS)}")  # fmt: skip
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SundogError(
            "pictures need matplotlib, which is not installed", "pip install 'sundog[sweeps]'"
        ) from None
    figure = Figure(figsize=(9.6, 9.0), layout="constrained")
    loss, share, stages = figure.subplots(3, 1, height_ratios=[3, 2, 2])
    figure.suptitle(_title(story), fontsize=11, color=_INK)
    _loss(loss, story)
    _goodput(share, story)
    left, right = stages.get_subplotspec().subgridspec(1, 2, wspace=0.08).subplots()
    stages.remove()
    _seconds(left, story)
    _pauses(right, story)
    for axes in (loss, share, left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=_INK)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise SundogError(
            f"{path} cannot be written: {error.strerror}", "give a folder that exists: -o"
        ) from None


def _title(story: Story) -> str:
    record = story.record
    parts = [story.run_id, str(record.get("state")), f"step {record.get('step') or 0:,}"]
    if record.get("goodput"):
        parts.append(f"goodput {100 * record['goodput']:.1f}%")
    hours = record.get("node_hours") or 0.0
    usd = record.get("usd")
    parts.append(f"${usd:.2f}" if usd else f"{hours:.2f} node-hours, no price")
    return " · ".join(parts)


def _loss(axes: Any, story: Story) -> None:
    again = [p for p in story.points if p not in story.kept]
    if again:
        axes.plot([p["step"] for p in again], [p["loss"] for p in again], ".", color=_FAINT,
                  markersize=4, label="computed again")  # fmt: skip
    kept = story.kept
    axes.plot([p["step"] for p in kept], [p["loss"] for p in kept], color="#5b7db1", lw=1.1,
              label="loss of a batch")  # fmt: skip
    measured = [
        (p["step"], p["metrics"]["val_loss"]) for p in kept if "val_loss" in (p["metrics"] or {})
    ]
    # The value stays until the next evaluation: only its changes are measurements.
    fresh = [m for i, m in enumerate(measured) if i == 0 or m[1] != measured[i - 1][1]]
    if fresh:
        axes.plot(*zip(*fresh, strict=True), "o-", color="#c05746", lw=1.2, markersize=4,
                  label="validation")  # fmt: skip
    _mark(axes, story, "step")
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel("loss", fontsize=8)
    axes.legend(fontsize=8, frameon=False, loc="upper right")


def _mark(axes: Any, story: Story, by: str) -> None:
    begin_s = story.points[0]["at_s"]
    for change in story.changes:
        where = change["step"] if by == "step" else change["at_s"] - begin_s
        axes.axvline(where, color=_FAINT, lw=1, zorder=0)
        before, after = change["workers"]
        axes.annotate(
            f"{before}→{after}", (where, 1), xycoords=("data", "axes fraction"), fontsize=7,
            color="#7f8c8d", ha="center", va="bottom",
        )  # fmt: skip


def _goodput(axes: Any, story: Story) -> None:
    begin_s = story.points[0]["at_s"]
    at = [p["at_s"] - begin_s for p in story.points]
    axes.plot(at, [100 * p["goodput"] for p in story.points], color=_COLOURS["useful"], lw=1.6)
    axes.set_ylim(0, 103)
    axes.set_ylabel("goodput so far, %", fontsize=8, color=_COLOURS["useful"])
    axes.set_xlabel("seconds since the first step", fontsize=8)
    workers = axes.twinx()
    counts = [p["workers"] for p in story.points]
    workers.step(at, counts, where="post", color="#8e6c8a", lw=1.1)
    workers.set_ylim(0, max(counts) + 0.5)
    workers.yaxis.get_major_locator().set_params(integer=True)
    workers.set_ylabel("workers", fontsize=8, color="#8e6c8a")
    workers.spines["top"].set_visible(False)
    workers.tick_params(labelsize=8, colors=_INK)
    _mark(axes, story, "time")


def _seconds(axes: Any, story: Story) -> None:
    account = story.record.get("account") or {}
    names = [n for n in ("useful", *LOSSES) if account.get(n, 0) > 0]
    values = [account[n] for n in names]
    rows = range(len(names))
    axes.barh(rows, values, color=[_COLOURS[n] for n in names], height=0.6)
    axes.set_yticks(list(rows), names)
    axes.invert_yaxis()
    total, usd = sum(values) or 1.0, story.record.get("account_usd") or {}
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        dollars = f" · ${usd[name]:.3f}" if usd.get(name) else ""
        axes.annotate(
            f"{value:,.1f} s · {100 * value / total:.1f}%{dollars}", (value, row),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=_INK,
        )  # fmt: skip
    axes.set_xlim(0, max(values, default=1.0) * 1.6)
    axes.set_title(
        "node-seconds" + (" and dollars" if any(usd.values()) else ""), fontsize=9, color=_INK
    )


def _pauses(axes: Any, story: Story) -> None:
    """What each change of the group cost: seconds from the last step before to the first after."""
    changes = story.changes[-8:]
    axes.set_title("pauses: seconds by stage", fontsize=9, color=_INK)
    if not changes:
        axes.text(0.5, 0.5, "none", ha="center", va="center", fontsize=9, color="#7f8c8d",
                  transform=axes.transAxes)  # fmt: skip
        axes.set_xticks([])
        axes.set_yticks([])
        return
    shown: set[str] = set()
    for row, change in enumerate(changes):
        left = 0.0
        for name, seconds in (change.get("stages") or {"pause": change["took_s"]}).items():
            label = None if name in shown else name
            shown.add(name)
            axes.barh(row, seconds, left=left, color=_COLOURS[name], height=0.6, label=label)
            left += seconds
        rate = story.usd_per_node_second
        nodes = change.get("nodes")
        cost = f" · ${change['took_s'] * nodes * rate:.4f}" if rate and nodes else ""
        again = f" · {change['steps_back']} again" if change["steps_back"] else ""
        axes.annotate(f"{change['took_s']:.2f} s{cost}{again}", (left, row), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=8, color=_INK)  # fmt: skip
    labels = [
        f"{c['event'].removeprefix('run.')} {c['workers'][0]}→{c['workers'][1]}" for c in changes
    ]
    axes.set_yticks(range(len(changes)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, max(c["took_s"] for c in changes) * 1.9 or 1)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
