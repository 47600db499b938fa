"""What a run's driver shows while workers train: lines for people, the record for everybody else.

Reads what the workers post and adds it up; decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sundog import telemetry
from sundog.clock import WALL
from sundog.rayapi.train_channel import Channel
from sundog.runs.bill import Prices
from sundog.runs.books import Books
from sundog.runs.driver import say
from sundog.runs.mfu import mfu
from sundog.runs.news import eta_s
from sundog.runs.resizing import STANDBYS
from sundog.runs.stages import Change, change, restart
from sundog.runs.worker import STOP_ASKED
from sundog.storage.runs import RunFolder

_PRINT_EVERY_S = 1.0
_RECORD_EVERY_S = 2.0
_PATIENCE_S = 30.0
_POINT_EVERY_S = 1.0  # of the curve, and ever more rarely: a long run has no larger file for it
_POINTS_PER_LIFE = 300
_STOPPING_S = 2.0  # until workers have heard of it and the last checkpoint is written
_CHANGES_KEPT = 99  # of the group, in the record; all of them are among the events


class Follower:
    """Shows what the workers post: lines for people, the record for everybody else."""

    def __init__(
        self,
        folder: RunFolder,
        channel: Channel,
        max_usd: float | None = None,
        observers: Sequence[Callable[[dict[str, Any]], None]] = (),
    ) -> None:
        self._observers = observers
        self._folder, self._channel, self._max_usd = folder, channel, max_usd
        self._budget_said = False
        self._last: dict[str, Any] = {}
        self._printed_s, self._recorded_s = float("-inf"), float("-inf")
        self._started_s = WALL.now_s()
        self._pointed_s = float("-inf")
        self._told_to_wait = False
        # Of the drivers before this one too.
        self._before = folder.record()
        self._books = Books(self._before, Prices(folder.root), self._started_s)
        self._changes: list[dict[str, Any]] = list(self._before.get("changes") or [])

    def __call__(self) -> None:
        progress = self._channel.read("progress")
        if progress is None:
            self._still_waiting()
        if progress is None or progress == self._last:
            return
        standing = self._standing()  # before anything is told: Ray may be away for a moment
        found = self._regrouped(progress)
        self._books.news(progress, found if self._last else None, standing)
        self._watch_budget(progress)
        self._point(progress, found is not None)
        self._last = progress
        now_s = WALL.monotonic_s()
        last = progress["step"] == progress["steps"]
        if last or now_s - self._printed_s >= _PRINT_EVERY_S:
            self._printed_s = now_s
            say(self._folder, progress_line(progress, self._books.bill.usd))
        if last or now_s - self._recorded_s >= _RECORD_EVERY_S:
            self._recorded_s = now_s
            self._folder.update(
                step=progress["step"], steps=progress["steps"], workers=progress["world"],
                metrics=progress["metrics"], loss=progress["loss"], samples_s=progress["samples_s"],
                changes=self._changes, placed=progress.get("placed"), eta_s=eta_s(progress),
                mfu=mfu(progress),
                tokens_s=progress["samples_s"] * progress.get("tokens", 0) or None,
                **self._books.fields,
            )  # fmt: skip

    def _still_waiting(self) -> None:
        if self._told_to_wait or WALL.now_s() - self._started_s < _PATIENCE_S:
            return
        import ray

        self._told_to_wait = True
        free = ray.available_resources()
        say(
            self._folder,
            f"still waiting for workers to start: {free.get('CPU', 0):g} CPU and "
            f"{free.get('GPU', 0):g} GPU are free on this cluster",
        )

    def _regrouped(self, progress: dict[str, Any]) -> Change | None:
        """Workers were lost or joined, or the driver before was: what it cost, stage by stage, goes
        into events and record."""
        if self._last and progress["group"] == self._last["group"]:
            return None
        stamps = self._channel.read("regroup")
        if stamps is not None and stamps.get("token") != progress["group"]:
            stamps = None
        if self._last:
            found = change(self._last, progress, stamps)
        elif self._before.get("cut_off") and self._before.get("accounted_s"):
            found = restart(self._before, self._started_s, progress, stamps)
        else:
            return None
        self._folder.event(found.event, **found.fields)
        self._changes = [*self._changes[-_CHANGES_KEPT:], {"event": found.event, **found.fields}]
        say(self._folder, found.line)
        self._printed_s = float("-inf")
        return found

    def _point(self, progress: dict[str, Any], changed: bool) -> None:
        """One point of the run's curve among its events, for `sundog runs plot`."""
        now_s = WALL.now_s()
        every_s = max(_POINT_EVERY_S, (now_s - self._started_s) / _POINTS_PER_LIFE)
        measured = self._last and progress["metrics"] != self._last["metrics"]
        last = progress["step"] == progress["steps"]
        if not (changed or measured or last or now_s - self._pointed_s >= every_s):
            return
        self._pointed_s = now_s
        point = {
            "step": progress["step"], "loss": progress["loss"], "metrics": progress["metrics"],
            "samples_s": progress["samples_s"], "workers": progress["world"],
            "goodput": self._books.account.goodput, "stall_s": self._books.stall_s,
            "usd": self._books.bill.usd, "mfu": mfu(progress),
        }  # fmt: skip
        self._folder.event(telemetry.RUN_PROGRESS, **point)
        for observer in self._observers:
            observer(point)

    def _standing(self) -> dict[str, bool]:
        """Nodes with standbys, and whether all that are there are ready."""
        out: dict[str, bool] = {}
        for actor in (self._channel.read(STANDBYS) or {}).get("actors", []):
            if where := self._channel.read(f"{STANDBYS}/{actor}"):
                out[where["node_id"]] = out.get(where["node_id"], True) and where["ready"]
        return out

    def _watch_budget(self, progress: dict[str, Any]) -> None:
        """Ask the workers to stop while the money still pays for the stopping."""
        if self._max_usd is None or self._budget_said:
            return
        usd = self._books.bill.usd
        if usd is None:
            self._budget_said = True
            say(self._folder, "max_usd is not watched: a node of this run has no price")
            return
        since_s = progress["at_s"] - self._started_s
        rate = (usd - self._books.usd_before) / since_s if since_s > 0 else 0.0
        if usd + rate * _STOPPING_S >= self._max_usd:
            self._budget_said = True
            self._channel.post(STOP_ASKED, {"usd": usd, "max_usd": self._max_usd})


def progress_line(progress: dict[str, Any], usd: float | None = None) -> str:
    """`step 300/600 · epoch 26.7 · loss 0.071 · accuracy 0.974 · 38.0k samples/s · 2 workers ·
    MFU 41.0% · $0.42 so far · 12 s to go`. Language models count tokens."""
    metrics = progress["metrics"]
    shown = [f"{n} {v:.3f}" for n, v in metrics.items() if not n.endswith("_loss")][:2]
    tokens = progress.get("tokens") or 0
    rate = progress["samples_s"] * (tokens or 1)
    speed = f"{rate / 1000:.1f}k" if rate >= 1000 else f"{rate:.0f}"
    left_s = eta_s(progress)
    return " · ".join(
        [
            f"step {progress['step']:,}/{progress['steps']:,}", f"epoch {progress['epoch']:.1f}",
            f"loss {progress['loss']:.3f}", *shown,
            f"{speed} {'tokens' if tokens else 'samples'}/s", count(progress["world"]),
            *([f"MFU {100 * used:.1f}%"] if (used := mfu(progress)) else []),
            *([f"${usd:.2f} so far"] if usd else []),
            *([f"{_span(left_s)} to go"] if left_s else []),
        ]
    )  # fmt: skip


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(workers: int) -> str:
    return f"{workers} worker" + ("" if workers == 1 else "s")
