"""What is known of each trial of a sweep: a journal in the run's folder, and its replay.

`sweep.jsonl` is append-only, so a driver that is killed loses nothing but its last moments; the
next one reads it and goes on. `sweep-spent.json` beside it is the newest word on what running trials
have cost. Decides nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sundog.errors import FormatTooNew, NotFound
from sundog.storage import appended
from sundog.storage.appended import Appender
from sundog.storage.runs import RunFolder

FORMAT = 1
ENDED = ("finished", "stopped", "failed")


@dataclass
class Trial:
    """One trial. `value` is its best report, `reports` are (number, value); `params` are those it has
    now, `best_params` those of its best report (population-based training changes them). `node_s`
    are seconds on its node, `node_hours` those as a share of the node, `unpriced_hours` the part of
    these that has no price; `usd` is what the rest cost, None when all of it is unpriced."""

    name: str
    number: int = 0
    repeat: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    state: str = "waiting"  # waiting | running | paused | finished | stopped | failed
    why: str = ""
    value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # of the best report
    reports: list[tuple[int, float]] = field(default_factory=list)
    step: int = 0
    steps: int = 0
    node_s: float = 0.0
    node_hours: float = 0.0
    usd: float | None = None
    unpriced_hours: float = 0.0
    diverged: bool = False  # with its parameters it would anywhere: stopped, and not begun again
    submission: int = 0
    best_params: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def report(self) -> int:
        return self.reports[-1][0] if self.reports else 0

    @property
    def whole_usd(self) -> float | None:
        """What the whole trial cost; None while a part of it has no price."""
        return None if self.unpriced_hours else self.usd

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands among others: names sort wrongly from a thousand trials on."""
        return self.number, self.repeat

    @property
    def shown(self) -> dict[str, Any]:
        """The parameters that its value was reached with."""
        return self.params if self.best_params is None else self.best_params

    def row(self) -> dict[str, Any]:
        """For the record, `sweep show` and exports."""
        return {
            "trial": self.name, "params": self.shown, "value": self.value, "step": self.step,
            "steps": self.steps, "reports": len(self.reports), "state": self.state,
            "why": self.why, "metrics": self.metrics, "seconds": round(self.node_s, 3),
            "node_hours": self.node_hours, "usd": self.usd,
            **({"unpriced_node_hours": self.unpriced_hours} if self.unpriced_hours else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Sums:
    """Of some trials. `usd`: as far as there were prices; None when nothing of it has one. `told`:
    (dollars, reports) of those that reported and are paid for."""

    usd: float | None
    unpriced_hours: float
    node_hours: float
    told: tuple[float, int]

    def __add__(self, more: Sums) -> Sums:
        known = [s.usd for s in (self, more) if s.usd is not None]
        return Sums(
            sum(known) if known else None,
            self.unpriced_hours + more.unpriced_hours,
            self.node_hours + more.node_hours,
            (self.told[0] + more.told[0], self.told[1] + more.told[1]),
        )

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> Sums:
        some = list(trials)
        known = [t.usd for t in some if t.usd is not None]
        told = [t for t in some if t.reports and t.whole_usd is not None]
        return cls(
            sum(known) if known else None,
            sum(t.unpriced_hours for t in some),
            sum(t.node_hours for t in some),
            (sum(t.usd or 0.0 for t in told), sum(len(t.reports) for t in told)),
        )


class Book:
    """All trials of a sweep in the order of their first mention."""

    def __init__(self, mode: str = "max") -> None:
        self.trials: dict[str, Trial] = {}
        self.mode = mode
        self.elapsed_s = 0.0
        self.submissions = 0
        # Money is counted at each report: not each time over all trials that ever were.
        self._over: Sums | None = None
        self._open: list[Trial] = []
        self._failed = 0

    def changed(self) -> None:
        """A trial that had ended has changed, or others have ended."""
        self._over = None

    def sums(self) -> Sums:
        if self._over is None:
            trials = self.trials.values()
            self._over = Sums.of(t for t in trials if t.ended)
            self._open = [t for t in trials if not t.ended]
            self._failed = sum(t.state == "failed" for t in trials)
        return self._over + Sums.of(self._open)

    @property
    def usd(self) -> float | None:
        """Dollars spent so far, as far as there were prices; None when nothing of it has one."""
        return self.sums().usd

    @property
    def unpriced_hours(self) -> float:
        """Node-hours that are not in `usd`."""
        return self.sums().unpriced_hours

    @property
    def node_hours(self) -> float:
        return self.sums().node_hours

    @property
    def ended(self) -> int:
        """How many trials have ended."""
        self.sums()
        return len(self.trials) - len(self._open)

    @property
    def failed(self) -> int:
        self.sums()
        return self._failed

    def numbers(self) -> int:
        """Configurations proposed so far."""
        return max((t.number for t in self.trials.values()), default=-1) + 1

    def apply(self, entry: dict[str, Any]) -> None:
        """One line of the journal."""
        kind = entry["what"]
        if kind != "report" or self.trials[entry["trial"]].ended:
            self.changed()
        if kind == "submitted":
            if entry["format"] > FORMAT:
                raise FormatTooNew(
                    f"the sweep's journal has format {entry['format']}, this Sundog reads {FORMAT}",
                    "use the Sundog that wrote it",
                )
            self.mode = entry["mode"]
            self.submissions += 1
        elif kind == "spent":
            self._spent(entry)
        elif kind == "trial":
            self.trials[entry["trial"]] = Trial(
                entry["trial"], entry["number"], entry["repeat"], entry["params"],
                submission=self.submissions,
            )  # fmt: skip
        elif kind == "report":
            self._report(self.trials[entry["trial"]], entry)
        elif kind == "state":
            trial = self.trials[entry["trial"]]
            trial.state, trial.why = entry["state"], entry["why"]
            trial.params = entry.get("params", trial.params)
            trial.diverged = entry.get("diverged", False)

    def _spent(self, entry: dict[str, Any]) -> None:
        self.elapsed_s = max(self.elapsed_s, entry["elapsed_s"])
        for name, (node_s, node_hours, usd) in entry["trials"].items():
            trial = self.trials.get(name)
            if trial is None or node_s < trial.node_s:
                continue  # an older total
            trial.node_s, trial.node_hours, trial.usd = node_s, node_hours, usd
            before = node_hours if usd is None else 0.0  # journals that did not tell them apart
            trial.unpriced_hours = entry.get("unpriced", {}).get(name, before)

    def _report(self, trial: Trial, entry: dict[str, Any]) -> None:
        value = float(entry["value"]) if entry["value"] is not None else math.nan
        trial.reports.append((entry["report"], value))
        trial.step, trial.steps = entry["step"], entry["steps"]
        trial.state, trial.submission = "running", self.submissions
        sign = 1 if self.mode == "max" else -1
        if math.isfinite(value) and (trial.value is None or sign * value > sign * trial.value):
            trial.value, trial.metrics = value, entry["metrics"]
            trial.best_params = trial.params


class Journal:
    """Writes a book while keeping it."""

    def __init__(self, folder: RunFolder, mode: str) -> None:
        self._folder = folder
        self._file = Appender(folder.root, key(folder))
        self.book = read(folder)
        self.write("submitted", format=FORMAT, mode=mode)

    def write(self, what: str, **fields: Any) -> None:
        entry = {"what": what, **fields}
        text = json.dumps(_finite(entry))
        self.book.apply(entry)
        self._file.append(f"{text}\n".encode())

    def spend(self, trials: Iterable[Trial], lasting: bool) -> None:
        """What these trials have cost. `lasting` goes into the journal; the rest replaces what was
        said before, so that it can be said often on any root."""
        some = list(trials)
        entry = {
            "what": "spent", "format": FORMAT, "elapsed_s": self.book.elapsed_s,
            "trials": {t.name: [t.node_s, t.node_hours, t.usd] for t in some},
            "unpriced": {t.name: t.unpriced_hours for t in some},
        }  # fmt: skip
        text = json.dumps(_finite(entry)).encode()
        if lasting:
            self._file.append(text + b"\n")
        else:
            self._folder.root.write(spent_key(self._folder), text)

    def flush(self) -> None:
        """All of the journal is in the root when this returns."""
        self._file.flush()


def spent_key(folder: RunFolder) -> str:
    return folder.key("sweep-spent.json")


def key(folder: RunFolder) -> str:
    return folder.key("sweep.jsonl")


def read(folder: RunFolder) -> Book:
    """The book of a sweep as its journal tells; empty when there is none."""
    book = Book()
    for entry in entries(folder):
        book.apply(entry)
    with suppress(NotFound, ValueError):
        book.apply(json.loads(folder.root.read(spent_key(folder))))
    return book


def entries(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The journal's lines; one that a crash cut short is skipped."""
    for line in appended.lines(folder.root, key(folder)):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _finite(value: Any) -> Any:
    # JSON has no NaN; the others keep the same shape.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
