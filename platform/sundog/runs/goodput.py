"""Goodput: the share of the node-seconds a run had that went into steps it kept, the rest by name.

Adds up what it is told happened; measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LOSSES = ("startup", "restart", "recomputed", "checkpoint", "idle")
"""Why a node-second was not useful: a process was starting, the group was forming again, a step
was computed twice, a step waited for a checkpoint, or the node had no part in the run."""


@dataclass
class Account:
    """Node-seconds by what became of them."""

    useful: float = 0.0
    losses: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0.0))

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> Account:
        """What `seconds()` gave, to go on from."""
        out = cls(float(seconds.get("useful", 0.0)))
        out.losses |= {name: float(seconds.get(name, 0.0)) for name in LOSSES}
        return out

    def seconds(self) -> dict[str, float]:
        """Node-seconds by what became of them, `useful` and each loss."""
        return {"useful": self.useful, **self.losses}

    def work(self, node_seconds: float) -> None:
        self.useful += node_seconds

    def lose(self, why: str, node_seconds: float) -> None:
        if why not in self.losses:
            raise ValueError(f"{why!r} is not one of {', '.join(LOSSES)}")
        self.losses[why] += node_seconds

    def undo(self, node_seconds: float) -> None:
        """Work that turned out to be lost: it will be computed again."""
        undone = min(node_seconds, self.useful)
        self.useful -= undone
        self.losses["recomputed"] += undone

    @property
    def available(self) -> float:
        return self.useful + sum(self.losses.values())

    @property
    def goodput(self) -> float:
        """Useful / available, in 0..1; 0 before anything was available."""
        return self.useful / self.available if self.available else 0.0

    def shares(self) -> Mapping[str, float]:
        """Each loss as a share of what was available."""
        total = self.available or 1.0
        return {name: lost / total for name, lost in self.losses.items()}


class Meter:
    """The account of a live run, from what its driver sees of it.

    `nodes` is what a second of them weighs: their number, or their dollars a second where the
    account is in dollars. `account` and `step` are what the driver before had come to.
    """

    def __init__(self, account: Account | None = None, step: int = 0) -> None:
        self.account = account or Account()
        self._step = step
        self._rate = self.account.useful / step if step else 0.0  # of work in a step, of late
        self._stall_s = 0.0
        self.stalled_s = 0.0  # that steps have waited for saves, whoever was the first worker

    def waited(self, why: str, nodes: float, seconds: float) -> None:
        self.account.lose(why, nodes * seconds)

    def stepped(self, step: int, nodes: float, seconds: float, stall_s: float = 0.0) -> None:
        """The group of `nodes` went on to `step` in `seconds`; `stall_s` is what all saves of its
        first worker have cost so far, which is another worker's count after a regroup. A step
        below an earlier one means that work was lost, and `seconds` spent on going back."""
        stalled_s = min(seconds, max(0.0, stall_s - self._stall_s))
        self._stall_s = stall_s
        self.stalled_s += stalled_s
        if step < self._step:
            self.account.undo((self._step - step) * self._rate)
            self.account.lose("restart", nodes * seconds)
            self._step = step
            return
        self.account.lose("checkpoint", nodes * stalled_s)
        worked = nodes * (seconds - stalled_s)
        self.account.work(worked)
        if step > self._step and worked:
            self._rate = worked / (step - self._step)
        self._step = step
