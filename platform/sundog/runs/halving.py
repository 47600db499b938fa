"""Which trial deserves the next dollar: cost-aware successive halving that gives second chances.

Responsible for continue, pause, resume or finish, each with its reason, from the curves and costs
seen so far. Refuses to run anything: `halving_tune` and the simulator call the same code.

Like asynchronous successive halving (Li et al. 2018, "A system for massively parallel
hyperparameter tuning") it keeps a falling share of all trials as they age, with four differences:

- it looks at every report, not at three rungs, with a gentle first cut and ever steeper ones:
  where a trial ranks after its first reports says little, a few reports later nearly everything;
- it ranks by an *outlook*: the last doubling's gain, carried on by a part (learning curves are
  close to power laws, so each doubling gains a fixed part of the one before), which lifts
  late bloomers;
- the share may shrink for a trial that costs more per report than others do (dollars, not steps);
- nothing is stopped for good: a trial that is out is paused with its checkpoint, and when fresh
  trials run out the share is widened round by round (restarts of growing width, as in Hyperband's
  brackets, but every earlier result is kept), those first that buy the most per dollar.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Rule:
    """How hard to cut. `grace`: reports before the first cut. `keep`: share kept there.

    At age a the share is `keep * (grace / a) ** steepness`, times the round's width. `rounds`: pairs
    of (width, outlook); outlook is the part of the last doubling's gain that is expected of the
    next, counted from age `outlook_from` on. Later rounds are wider and more hopeful.
    `thrift`: 0 ignores costs, 1 halves the share of a trial twice as dear as the median.
    """

    max_age: int
    grace: int = 2
    keep: float = 0.5
    steepness: float = 1.5
    outlook_from: int = 4
    thrift: float = 0.0
    rounds: tuple[tuple[float, float], ...] = ((1.0, 0.4), (2.0, 1.0), (3.0, 2.0))

    def __post_init__(self) -> None:
        if not 1 <= self.grace <= self.max_age:
            raise ValueError(f"grace {self.grace} must lie in 1..{self.max_age}")
        if not 0 < self.keep <= 1 or self.steepness < 0 or not self.rounds:
            raise ValueError(f"a share in (0, 1], a steepness >= 0 and a round: {self}")


@dataclass(frozen=True)
class Verdict:
    """What to do with a trial that has reported: `rank` (0 is best) among `peers` of its age."""

    action: Literal["continue", "pause", "complete"]
    rank: int
    peers: int
    allowed: float
    reason: str


@dataclass(frozen=True)
class Choice:
    """What a free worker does: resume this trial, start a fresh one, or nothing is worth it."""

    action: Literal["resume", "start", "finish"]
    trial: str | None
    reason: str


@dataclass
class Trial:
    """What is known of one trial: a value per report (higher is better) and its cost so far."""

    values: list[float] = field(default_factory=list)
    cost: float = 0.0
    state: Literal["running", "paused", "complete", "failed"] = "running"

    @property
    def age(self) -> int:
        return len(self.values)


class Board:
    """All trials of one sweep. Everything a verdict may look at, rebuilt from a replay of reports."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.trials: dict[str, Trial] = {}
        self.round = 0
        self._scores: list[list[float]] = [[] for _ in range(rule.max_age)]
        self._rates: list[float] = []

    def start(self, trial: str) -> None:
        """A fresh trial runs (or a paused one again)."""
        self.trials.setdefault(trial, Trial()).state = "running"

    def fail(self, trial: str) -> None:
        """It will not report again; what it showed still counts."""
        if trial in self.trials:
            self.trials[trial].state = "failed"

    def report(self, trial: str, value: float, cost: float) -> Verdict:
        """The trial's next report (higher is better; NaN is worst) and what it cost since the last.

        Raises ValueError for a negative cost.
        """
        if cost < 0:
            raise ValueError(f"a report of {trial} cannot cost {cost}")
        seen = self.trials.setdefault(trial, Trial())
        seen.values.append(-math.inf if math.isnan(value) else float(value))
        seen.cost += cost
        if seen.age <= self.rule.max_age:
            insort(self._scores[seen.age - 1], self._score(seen, seen.age))
        if seen.age == self.rule.grace:
            insort(self._rates, seen.cost / seen.age)
        verdict = self.judge(trial)
        seen.state = {"continue": "running", "pause": "paused", "complete": "complete"}[
            verdict.action
        ]  # type: ignore[assignment]
        return verdict

    def judge(self, trial: str) -> Verdict:
        """What the rule says of this trial now; asking changes nothing."""
        seen = self.trials[trial]
        rank, peers, allowed = self._standing(seen)
        place = f"rank {rank + 1} of {peers} after {seen.age} reports"
        if seen.age >= self.rule.max_age:
            return Verdict("complete", rank, peers, allowed, f"{place}: complete")
        if rank < allowed:
            return Verdict("continue", rank, peers, allowed, f"{place}, {allowed:.1f} may go on")
        return Verdict(
            "pause", rank, peers, allowed, f"{place}, only {allowed:.1f} may go on: paused"
        )

    def choose(self, fresh: bool) -> Choice:
        """What a free worker does next. `fresh`: the searcher still has trials to start.

        Widens the round when nothing else is left, so call it only for a worker that is free.
        """
        while True:
            best = self._most_for_the_money()
            if best is not None:
                width, _ = self.rule.rounds[self.round]
                why = f"{self.judge(best).reason} (width {width:g})"
                return Choice("resume", best, why)
            if fresh:
                return Choice("start", None, "no paused trial ranks high enough: a fresh one")
            if self.round + 1 >= len(self.rule.rounds):
                return Choice("finish", None, "every round is done: nothing left is worth its cost")
            self._widen()

    def _widen(self) -> None:
        self.round += 1
        if self.rule.rounds[self.round][1] != self.rule.rounds[self.round - 1][1]:
            self._rescore()

    def _rescore(self) -> None:
        """All scores under this round's outlook."""
        self._scores = [[] for _ in range(self.rule.max_age)]
        for seen in self.trials.values():
            for age in range(1, min(seen.age, self.rule.max_age) + 1):
                self._scores[age - 1].append(self._score(seen, age))
        for scores in self._scores:
            scores.sort()

    def _most_for_the_money(self) -> str | None:
        best, best_key = None, (-math.inf, -math.inf)
        for name, seen in self.trials.items():
            if seen.state != "paused":
                continue
            rank, _, allowed = self._standing(seen)
            if rank < allowed:
                # The older are nearer to a result; among equals the better rank per dollar.
                key = (float(seen.age), -(rank + 1) * seen.cost / seen.age)
                if key > best_key:
                    best, best_key = name, key
        return best

    def _score(self, seen: Trial, age: int) -> float:
        value, outlook = seen.values[age - 1], self.rule.rounds[self.round][1]
        if age < max(2, self.rule.outlook_from) or not math.isfinite(value):
            return value
        half = age // 2
        before = seen.values[half - 1]
        if age % 2:
            before = (before + seen.values[half]) / 2
        return value + outlook * max(0.0, value - before) if math.isfinite(before) else value

    def _standing(self, seen: Trial) -> tuple[int, int, float]:
        if not seen.values:
            return 0, 0, 1.0
        age = min(seen.age, self.rule.max_age)
        peers = self._scores[age - 1]
        rank = len(peers) - bisect_right(peers, self._score(seen, age))
        return rank, len(peers), self._allowed(seen, age)

    def _allowed(self, seen: Trial, age: int) -> float:
        rule = self.rule
        if age < rule.grace:
            return math.inf
        share = rule.keep * (rule.grace / age) ** rule.steepness
        screened = len(self._scores[rule.grace - 1])
        return max(1.0, rule.rounds[self.round][0] * share * screened * self._discount(seen))

    def _discount(self, seen: Trial) -> float:
        if not self.rule.thrift or not seen.cost or len(self._rates) < 3:
            return 1.0
        median = self._rates[len(self._rates) // 2]
        return (median * seen.age / seen.cost) ** self.rule.thrift if median else 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: reports and states, enough to rebuild the board."""
        return {
            "format": 1,
            "round": self.round,
            "trials": {
                name: {"values": t.values, "cost": t.cost, "state": t.state}
                for name, t in self.trials.items()
            },
        }

    @classmethod
    def from_dict(cls, rule: Rule, raw: dict[str, Any]) -> Board:
        board = cls(rule)
        board.round = int(raw["round"])
        for name, kept in raw["trials"].items():
            seen = board.trials[name] = Trial(list(kept["values"]), kept["cost"], kept["state"])
            if seen.age >= rule.grace:
                insort(board._rates, seen.cost / seen.age)
        board._rescore()
        return board
