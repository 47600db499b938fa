"""The driver's side of a sweep while it runs: hands out trials, keeps the book, ends it in time.

Between the searcher (which configurations), the scheduler (which go on) and the purse (what may be
spent). Trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from sundog import telemetry
from sundog.clock import WALL, Clock
from sundog.rayapi.tune_feed import Wanted, forget_history
from sundog.runs.driver import say
from sundog.runs.hours import open_at
from sundog.runs.sweep_book import Book, Journal, Trial
from sundog.runs.sweep_meter import Meter
from sundog.runs.sweep_purse import Purse, Rates, forecast
from sundog.runs.sweep_schedule import Watched
from sundog.runs.sweep_search import Search
from sundog.runs.sweep_table import best_of
from sundog.runs.sweep_tracking import SweepMlFlow
from sundog.spec.sweep import SweepSpec
from sundog.storage.runs import RunFolder

_TICK_S = 0.5  # how often time becomes money
_PAUSES_S = 0.2  # how often it is looked at who is paused
_WRITE_S = 2.0  # how often that is written down: what a killed driver forgets at most
_PATIENCE_S = 60.0  # a new node's price is known seconds after its first trial began
_SHOW_S = 5.0
_RECORD_S = 1.0  # of many short trials not each one changes the record


class Conductor(tune.Callback, tune.Stopper):  # type: ignore[misc]
    """Everything that Tune asks of us, but for the scheduler's decisions."""

    def __init__(
        self,
        spec: SweepSpec,
        folder: RunFolder,
        journal: Journal,
        search: Search,
        rates: Rates,
        nodes: Callable[[], dict[str, dict[str, float]]],
        clock: Clock = WALL,
        tracking: SweepMlFlow | None = None,
    ) -> None:
        self._spec, self._folder, self._journal, self._search = spec, folder, journal, search
        self._tracking = tracking
        self.book, self._clock = journal.book, clock
        unpriced = [t for t in self.book.trials.values() if t.unpriced_hours]
        self.meter = Meter(self.book, rates, nodes)
        if any(not t.unpriced_hours for t in unpriced):
            journal.spend(unpriced, lasting=True)
        self.purse = Purse(spec, self.book, lambda: self.meter.dearest_usd_hour)
        self.watched: Watched | None = None
        self.ending: str | None = None  # why no trial goes on
        self.closing: str | None = None  # why no trial begins
        self.resting = False  # `ending` is only the end of its hours
        self.fatal: tuple[str, str] | None = None
        self._unpriced: set[str] = set()  # nodes that were named for having no price
        self._waiting = [t for t in self.book.trials.values() if not t.ended]
        # A driver may have died between the repeats of one configuration.
        self._fresh = [
            t
            for n, params in {t.number: t.params for t in self.book.trials.values()}.items()
            for t in self._group(n, params)
        ]
        self._number = self.book.numbers()
        self._live: set[str] = set()
        self._last_s = self._written_s = self._shown_s = self._noted_s = clock.monotonic_s()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it is given, to restore it: we restore from our journal

    @property
    def total(self) -> int:
        return self._search.total * self._spec.repeats

    # --- which trial is next ----------------------------------------------------------------------

    def following(self) -> Wanted | None:
        """The next trial for Tune: those of earlier submissions first, then fresh ones."""
        assert self.watched is not None
        if self.ending or self.over():
            return None
        paused = next((t for t in self._waiting if t.state == "paused"), None)
        if paused is not None and self._spec.scheduler.halving:
            self._waiting.remove(paused)
            return self._hand(paused, paused=True)
        if not self.watched.room:
            return None
        if self._waiting:
            return self._hand(self._waiting.pop(0))
        if self.watched.holds_fresh():
            return None
        self.closing = self.purse.too_small()
        if self.closing:
            return None
        return self._hand(self._begin())

    def _begin(self) -> Trial:
        if not self._fresh:
            self._fresh = self._group(self._number, self._search.propose(self._number))
            self._number += 1
        return self._fresh.pop(0)

    def _group(self, number: int, params: dict[str, Any]) -> list[Trial]:
        """The trials of a configuration, one a repeat; those that are known already are left out."""
        out = []
        for repeat in range(self._spec.repeats):
            name = f"trial-{number:03d}" + (f"-{repeat}" if repeat else "")
            if name not in self.book.trials:
                self._journal.write(
                    "trial", trial=name, number=number, repeat=repeat, params=params
                )
                out.append(self.book.trials[name])
        return out

    def _hand(self, trial: Trial, paused: bool = False) -> Wanted:
        self._live.add(trial.name)
        self._journal.write(
            "state", trial=trial.name, state="paused" if paused else "running", why=""
        )
        return Wanted(trial.name, trial.params, paused)

    def over(self) -> bool:
        """Whether nothing more will be handed out."""
        if self.ending or self.closing:
            return True
        return not self._waiting and not self._fresh and self._number >= self._search.total

    # --- what trials say --------------------------------------------------------------------------

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        known = self.book.trials[trial.trial_id]
        if result.get("nodes"):
            self.meter.placed(known.name, result["nodes"])
        if "fault" in result:
            if result["fatal"]:
                self.fatal = (result["fault"], result["fix"])
                self.ending = result["fault"]
            diverged = bool(result.get("diverged"))  # a result as any other, and the worst
            self._end(known, "stopped" if diverged else "failed", result["fault"], diverged)
            return
        if trial.config != known.params:
            self._journal.write(
                "state", trial=known.name, state="running", why="took over from a better one",
                params=dict(trial.config),
            )  # fmt: skip
        if "report" not in result:
            return
        if result["report"] <= known.report and not self._spec.scheduler.pbt:
            return  # said again after an older checkpoint
        self._tick()
        metrics = {k: float(v) for k, v in result["measured"].items()}
        spent = self.book.sums()
        self._journal.write(
            "report", trial=known.name, report=result["report"], value=metrics[self._spec.metric],
            step=result["step"], steps=result["steps"], metrics=metrics,
            spent=[spent.usd, spent.node_hours],
        )  # fmt: skip
        if self._tracking:
            self._tracking.reported(known, result["step"], metrics)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        known = self.book.trials[trial.trial_id]
        forget_history(trial)
        if known.ended or self.ending:
            return
        assert self.watched is not None
        by_itself = trial.status == "RUNNING" and known.name not in self.watched.stopped
        if by_itself or (known.step >= known.steps > 0):
            if known.reports:
                self._end(known, "finished", "all its steps")
            else:
                self._end(known, "failed", f"it ended without a report of {self._spec.metric}")
        else:
            self._end(known, "stopped", self.watched.reason(known.name))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        known = self.book.trials[trial.trial_id]
        if not known.ended:
            self._end(known, "failed", lost(trial))

    def _end(self, trial: Trial, state: str, why: str, diverged: bool = False) -> None:
        self._tick()
        more = {"diverged": True} if diverged else {}
        self._journal.write("state", trial=trial.name, state=state, why=why, **more)
        self._journal.spend([trial], lasting=True)
        self._journal.flush()
        self._live.discard(trial.name)
        self._tell_search(trial)
        self._folder.event(telemetry.TRIAL_FINISHED, **trial.row())
        self._track(trial)
        self._show(trial)

    def _track(self, trial: Trial) -> None:
        if self._tracking is None:
            return
        self._tracking.ended(trial)
        if best := best_of(list(self.book.trials.values()), self._spec):
            spent = {"usd": self.book.usd, "node_hours": self.book.node_hours}
            self._tracking.best(best, spent)

    def _tell_search(self, trial: Trial) -> None:
        group = [t for t in self.book.trials.values() if t.number == trial.number]
        if found := outcome(group, self._spec):
            self._search.ended(trial.number, *found)

    # --- time and money ---------------------------------------------------------------------------

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._last_s >= _TICK_S:
            self._tick()
            self._mind_the_hours()
        if now_s - self._noted_s >= _PAUSES_S:  # reports tick too: their clock may never be due
            self._noted_s = now_s
            self._note_pauses()
        if now_s - self._written_s >= _WRITE_S:
            self._write_spent()
        if now_s - self._shown_s >= _SHOW_S:
            self._record()

    def _tick(self) -> None:
        """Charge every running trial for the time since the last look."""
        now_s = self._clock.monotonic_s()
        passed, self._last_s = now_s - self._last_s, now_s
        self.book.elapsed_s += passed
        if watched := self.watched:
            some = [n for n, s in watched.statuses().items() if s == "RUNNING" and n in self._live]
            self.meter.charge(some, passed, watched.workers)
        self.ending = self.ending or self.purse.empty() or self._priceless()

    def _mind_the_hours(self) -> None:
        hours = self._spec.hours
        if not hours or self.ending or self.closing or open_at(hours, self._clock.now_s()):
            return
        self.resting, self.ending = True, "its hours are over"

    def _priceless(self) -> str | None:
        """Why a budget in dollars cannot be kept any longer; names nodes without a price once."""
        nodes = self.meter.without_price(_PATIENCE_S)
        fresh = [n[:12] or "of a trial" for n in nodes if n not in self._unpriced]
        if not fresh:
            return None
        self._unpriced |= set(nodes)
        text = f"the price of node {', '.join(fresh)} is not known"
        if self._spec.max_usd is not None:
            return (
                f"{text}, so max_usd cannot be kept: write usd_node_hour, what it is worth to you"
            )
        if self.book.usd is not None:
            say(self._folder, f"{text}: its hours are counted apart from the dollars")
        return None

    def _note_pauses(self) -> None:
        for name, status in (self.watched.statuses() if self.watched else {}).items():
            trial = self.book.trials[name]
            state = {"PAUSED": "paused", "RUNNING": "running"}.get(status)
            if state and name in self._live and state != trial.state:
                why = self._waits(name) if state == "paused" else ""
                self._journal.write("state", trial=name, state=state, why=why)
                if state == "paused":
                    self._journal.spend([trial], lasting=True)

    def _waits(self, name: str) -> str:
        reasons = getattr(self.watched.inner, "reasons", {}) if self.watched else {}
        return str(reasons.get(name, "waits for others"))

    def _write_spent(self) -> None:
        """What may grow until the next time; paused trials were written down when they paused."""
        self._written_s = self._clock.monotonic_s()
        some = [self.book.trials[n] for n in sorted(self._live)]
        self._journal.spend([t for t in some if t.state != "paused"], lasting=False)
        self._journal.flush()

    def close(self) -> None:
        """Write down what is left to say; trials that were cut short wait for the next submission."""
        self._tick()
        self._journal.spend([self.book.trials[n] for n in sorted(self._live)], lasting=True)
        for name in sorted(self._live):
            trial = self.book.trials[name]
            if trial.step >= trial.steps > 0:
                self._journal.write("state", trial=name, state="finished", why="all its steps")
            elif trial.state == "running":
                why = self.ending or self.closing or ""
                self._journal.write("state", trial=name, state="waiting", why=why)
            if self._tracking and trial.reports:
                self._tracking.ended(trial)
        self._journal.flush()
        self._record()

    # --- the end ----------------------------------------------------------------------------------

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.ending is not None

    # --- what people see --------------------------------------------------------------------------

    def _show(self, trial: Trial) -> None:
        ended = self.book.ended
        value = f"no {self._spec.metric}" if trial.value is None else (
            f"{self._spec.metric} {trial.value:.4f}"
        )  # fmt: skip
        line = f"  {ended}/{self.total}  {trial.name} · {value} · step {trial.step}/{trial.steps}"
        if trial.state == "failed":
            line += f" · failed: {trial.why}"
        say(self._folder, f"{line} · {spending(self.book)} so far")
        if self._clock.monotonic_s() - self._shown_s >= _RECORD_S:
            self._record()

    def _record(self) -> None:
        self._shown_s = self._clock.monotonic_s()
        ended = self.book.ended
        ahead = forecast(self.book, self.total)
        self._folder.update(
            step=ended, steps=self.total, usd=self.book.usd, node_hours=self.book.node_hours,
            unpriced_node_hours=self.book.unpriced_hours, forecast_usd=ahead.usd,
            forecast_node_hours=ahead.node_hours,
        )  # fmt: skip


def objectives(trial: Trial, spec: SweepSpec) -> list[float] | None:
    """Its best report in the order of the spec's objectives; usd and seconds are what it cost."""
    if trial.value is None:
        return None
    measured = {**trial.metrics, "seconds": trial.node_s, "usd": trial.whole_usd}
    row = [trial.metrics.get(spec.metric, trial.value), *(measured.get(n) for n in spec.also)]
    found = [float(v) for v in row if v is not None and math.isfinite(v)]
    return found if len(found) == len(row) else None


def outcome(group: Sequence[Trial], spec: SweepSpec) -> tuple[list[float] | None, int, bool] | None:
    """What a searcher is told of a configuration: the mean objectives of its repeats (None: no good
    ones), their reports, and whether they were cut short. None while it has not ended."""
    if len(group) < spec.repeats or any(not t.ended for t in group):
        return None
    shown = [None if t.diverged else objectives(t, spec) for t in group]
    good = [o for o in shown if o is not None]
    mean = [math.fsum(column) / len(good) for column in zip(*good, strict=True)]
    return mean or None, max(t.report for t in group), any(t.state == "stopped" for t in group)


def spending(book: Book) -> str:
    return money(book.usd, book.node_hours, book.unpriced_hours)


def money(usd: float | None, node_hours: float, unpriced: float = 0.0) -> str:
    """`$0.0031` or, without prices, `0.004 node-hours`; with some, both."""
    if usd is None:
        return f"{node_hours:.4f} node-hours"
    more = f" and {unpriced:.4f} node-hours without a price" if unpriced else ""
    return f"${usd:.4f}{more}"


def lost(trial: Any) -> str:
    """Why Tune gave a trial up, in one line."""
    error = trial.get_error() if hasattr(trial, "get_error") else None
    cause: Any = getattr(error, "cause", None) or error
    lines = [line for line in str(cause or "its process was lost").strip().splitlines() if line]
    for line in reversed(lines):
        if "Error" in line and ":" in line:
            return line.split("errors.")[-1].strip()
    return lines[-1].strip()
