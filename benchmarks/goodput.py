"""Goodput of training under real preemption events: ours beside what is common, by simulation.

Replays Bamboo (`ms,add|remove,nodeN`) and Parcae (JSON lines) node events. Work is linear in the
number of nodes; a node-second is available from the node's add to its removal. Removals come
without a notice unless the policy says so, and nobody knows the future.

    python benchmarks/goodput.py --events ../shared/traces/preemptions/bamboo-p3.csv --json out.json

With --real the same events, thinned to a few nodes and compressed in time, also happen to real worker
processes (gloo, CPU), and the simulator gets the stage costs that this machine was measured to have.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from this_machine import machine

from sundog.runs.goodput import Account
from sundog.runs.interval import young_daly_s
from sundog.runs.resize import Snapshot, decide

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Change:
    """Nodes that came and went at one moment."""

    at_s: float
    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """What a change costs. Seconds; `checkpoint_s` is how long a step waits for a save."""

    name: str
    survivors_keep_state: bool
    warm_in_background: bool  # a newcomer starts while the others go on
    notice: bool  # a checkpoint is written inside the preemption notice
    startup_s: float  # from a node that is there to a process that can join
    shrink_s: float  # a worker is gone -> the next step of the others
    grow_s: float  # all stand still while warm workers join
    cold_s: float  # nobody is left -> first step, from the checkpoint
    checkpoint_s: float
    every_s: float | None  # None: Young/Daly from the losses seen so far
    step_s: float = 1.0


# The stage costs of ours: the goals of the design; `--costs FILE` takes what benchmarks/recovery.py
# measured. Checkpoint stalls are of an asynchronous save of 500 MB.
SUNDOG = Policy("sundog", True, True, False, 10.0, 3.0, 1.0, 10.0, 0.10, None)
OTHERS = (
    Policy("restart 5 s, checkpoint in the notice", False, False, True, 0, 5, 5, 5, 10, None),
    Policy("restart 20 s, checkpoint in the notice", False, False, True, 0, 20, 20, 20, 10, None),
    Policy("restart 60 s, Young/Daly", False, False, False, 0, 60, 60, 60, 10, None),
    Policy("restart 60 s, every 30 min", False, False, False, 0, 60, 60, 60, 10, 1800),
)


def read_events(path: Path) -> list[Change]:
    """The changes in a file of either format, by time. ValueError with the line that is neither."""
    by_time: dict[float, tuple[list[str], list[str]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            at_ms, what, nodes = _parcae(line) if line.lstrip().startswith("[") else _bamboo(line)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: neither Bamboo nor Parcae: {error}") from None
        added, removed = by_time.setdefault(at_ms / 1000, ([], []))
        if what == "add":
            added += nodes
        elif what == "remove":
            removed += nodes
    return [Change(at, tuple(a), tuple(r)) for at, (a, r) in sorted(by_time.items())]


def _bamboo(line: str) -> tuple[float, str, list[str]]:
    at_ms, what, node = line.strip().split(",")
    if what not in ("add", "remove"):
        raise ValueError(f"{what!r} is neither add nor remove")
    return float(at_ms), what, [node]


def _parcae(line: str) -> tuple[float, str, list[str]]:
    at_ms, what, fields = json.loads(line)
    return float(at_ms), str(what), [str(node) for node in fields["nodes"]]


class Replay:
    """One policy on one trace. Between two moments nothing changes, so time is added in pieces."""

    def __init__(self, policy: Policy, most: int) -> None:
        self.policy, self.most = policy, most
        self.account = Account()
        self.now_s = 0.0
        self.nodes: dict[str, float] = {}  # node -> when its process can join
        self.group: set[str] = set()
        self.resume_s = 0.0  # until then all stand still
        self.why = "restart"
        self.fresh = True  # no state in anybody's memory
        self.since_save = 0.0  # node-seconds of work that no checkpoint has
        self.last_save_s = 0.0
        self.losses = 0
        self.node_seconds = 0.0

    def run(self, changes: Sequence[Change], end_s: float) -> Account:
        for change in changes:
            self.advance(change.at_s)
            self.change(change)
        self.advance(end_s)
        return self.account

    # --- time -----------------------------------------------------------------------------------

    def advance(self, until_s: float) -> None:
        while self.now_s < until_s:
            self.decide()
            moment = min([until_s, *(m for m in self.moments() if m > self.now_s)])
            self.spend(moment - self.now_s)
            self.now_s = moment
            self.save_if_due()

    def moments(self) -> Iterator[float]:
        yield self.resume_s
        yield from (ready for node, ready in self.nodes.items() if node not in self.group)
        if self.group:
            yield max(self.last_save_s + self.interval_s(), self.resume_s)

    def spend(self, seconds: float) -> None:
        paused = self.now_s < self.resume_s
        self.node_seconds += len(self.nodes) * seconds
        for node, ready in self.nodes.items():
            if node in self.group:
                if paused:
                    self.account.lose(self.why, seconds)
                else:
                    self.account.work(seconds)
                    self.since_save += seconds
            else:
                self.account.lose("startup" if ready > self.now_s else "idle", seconds)

    def interval_s(self) -> float:
        if self.policy.every_s is not None:
            return self.policy.every_s
        # One loss is assumed before any was seen.
        mtbf_s = max(self.now_s, 600.0) / max(1, self.losses)
        if self.policy.survivors_keep_state:
            mtbf_s *= 10  # only losing everybody at once needs the checkpoint
        return max(5.0, young_daly_s(self.policy.checkpoint_s, mtbf_s))

    def save_if_due(self) -> None:
        due = self.now_s >= self.last_save_s + self.interval_s()
        if due and self.group and self.now_s >= self.resume_s:
            self.last_save_s, self.since_save = self.now_s, 0.0
            self.pause(self.policy.checkpoint_s, "checkpoint")

    # --- changes --------------------------------------------------------------------------------

    def change(self, change: Change) -> None:
        gone = [node for node in change.removed if node in self.nodes]
        hit = sum(node in self.group for node in gone)
        before = len(self.group)
        for node in gone:
            del self.nodes[node]
            self.group.discard(node)
        for node in change.added:
            if node not in self.nodes and len(self.nodes) < self.most:
                self.nodes[node] = self.now_s + self.policy.startup_s
        if hit:
            self.losses += hit
            self.lost(before)

    def lost(self, before: int) -> None:
        policy = self.policy
        if policy.survivors_keep_state and self.group:
            # The step that was under way is computed again, by all.
            again = 0.0 if policy.notice else before * policy.step_s
            self.undo(again)
        elif not policy.notice:
            self.undo(self.since_save)
        if not self.group:
            self.fresh = True
            return
        self.pause(policy.shrink_s)

    def undo(self, node_seconds: float) -> None:
        self.account.undo(node_seconds)
        self.since_save = max(0.0, self.since_save - node_seconds)

    def pause(self, seconds: float, why: str = "restart") -> None:
        self.why = why
        self.resume_s = max(self.resume_s, self.now_s + seconds)

    def decide(self) -> None:
        """Who joins now: the same decision that a live run makes."""
        policy = self.policy
        waiting = [n for n in self.nodes if n not in self.group]
        warm = [n for n in waiting if self.nodes[n] <= self.now_s]
        if not warm or self.now_s < self.resume_s:
            return
        later = [self.nodes[n] - self.now_s for n in waiting if n not in warm]
        decision = decide(
            Snapshot(
                working=len(self.group), lost=0, leaving=0, warm=len(warm), warming=len(later),
                low=1, high=self.most, grow_pause_s=policy.grow_s,
                next_warm_s=min(later, default=math.inf),
            )
        )  # fmt: skip
        if decision.what != "grow":
            return
        if self.fresh:
            self.pause(policy.cold_s)
        else:
            if not policy.warm_in_background and not policy.notice:
                self.undo(self.since_save)  # the whole group starts again from its checkpoint
            self.pause(policy.grow_s)
        self.fresh = False
        self.group |= set(warm[: decision.workers - len(self.group)])


def measure(path: Path, most: int, policies: Sequence[Policy]) -> dict[str, object]:
    changes = read_events(path)
    ends = [c.at_s for c in changes]
    # A trace of ticks lasts one tick beyond its last line.
    end_s = ends[-1] + (ends[-1] - ends[-2] if len(ends) > 1 and not _is_bamboo(path) else 0)
    out: dict[str, object] = {}
    for policy in policies:
        replay = Replay(policy, most)
        account = replay.run(changes, end_s)
        assert math.isclose(account.available, replay.node_seconds, rel_tol=1e-6)
        out[policy.name] = {
            "goodput": round(account.goodput, 4),
            "losses": {k: round(v, 4) for k, v in account.shares().items()},
            "node_hours": round(account.available / 3600, 2),
        }
    return {"policies": out, "removals": sum(len(c.removed) for c in changes), "end_s": end_s}


def compare(
    path: Path, most: int, changes: int, seconds: float, notice: bool, rounds: int
) -> dict[str, Any]:
    """The same thinned, compressed events for real and in the simulator, with measured costs."""
    from goodput_real import calibrate, replay_really, thinned

    alive: set[str] = set()
    counts = []
    for change in read_events(path):
        alive = (alive | set(change.added)) - set(change.removed)
        counts.append((change.at_s, len(alive)))
    events = thinned(counts, most, changes, seconds)
    costs = calibrate(most, notice, rounds)
    policy = replace(SUNDOG, name="measured", notice=notice, **costs)
    replay = Replay(policy, most)
    names: list[str] = []
    plan = []
    for number, event in enumerate(events):
        added = [f"{number}-{i}" for i in range(event.nodes - len(names))]
        gone = names[event.nodes :]
        names = [*names[: event.nodes], *added]
        plan.append(Change(event.at_s, tuple(added), tuple(gone)))
    simulated = replay.run(plan, seconds)
    account, seen = replay_really(events, seconds, most, notice)
    return {
        "real": {"goodput": round(account.goodput, 4), "losses": _rounded(account)},
        "simulated": {"goodput": round(simulated.goodput, 4), "losses": _rounded(simulated)},
        "difference": round(_apart(account.goodput, simulated.goodput), 4),
        "removal": "SIGTERM after a notice" if notice else "kill -9",
        "events": [asdict(e) for e in events], "seconds": seconds,
        "costs": {k: round(v, 4) for k, v in costs.items()}, "seen": seen,
    }  # fmt: skip


def _apart(one: float, other: float) -> float:
    """The difference of two shares, relative to the larger one."""
    return abs(one - other) / max(one, other, 1e-9)


def _rounded(account: Account) -> dict[str, float]:
    return {k: round(v, 4) for k, v in account.shares().items()}


def _is_bamboo(path: Path) -> bool:
    return not path.read_text().lstrip().startswith("[")


def ours(costs: Mapping[str, float], noticed_s: float) -> tuple[Policy, ...]:
    """Ours with these stage costs; `noticed_s` is the pause when a node goes with a notice."""
    base = replace(SUNDOG, **costs)
    slow = 60.0
    return (
        base,
        replace(base, name="sundog, with notices", notice=True, shrink_s=noticed_s),
        replace(
            base, name="sundog, 60 s to start a node", startup_s=slow, cold_s=base.cold_s + slow
        ),
    )


def policies_of(path: Path | None) -> tuple[Policy, ...]:
    """All policies, ours with the medians of a file of recovery.py, else with the design's goals."""
    if path is None:
        return (*ours({}, 1.5), *OTHERS)
    try:
        stages = json.loads(path.read_text())["policies"]["sundog"]

        def median(kind: str, name: str) -> float:
            return float(stages[kind][name]["median"])

        costs = {
            "shrink_s": median("raylet", "fault_to_step_s"),
            "grow_s": median("raylet", "pause_to_grow_s"),
            "cold_s": median("driver", "fault_to_step_s"),
        }
        return (*ours(costs, median("notice", "pause_s")), *OTHERS)
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(
            f"{path}: no result of recovery.py with raylet, driver and notice: {error!r}"
        ) from None


def for_real(arguments: argparse.Namespace) -> dict[str, object]:
    """Each file's events with real processes, killed and then told before, beside the simulator."""
    paths, notices = arguments.events, (False, True)
    seconds, changes = arguments.seconds, arguments.changes
    if arguments.quick:
        paths, notices, seconds, changes = paths[:1], (False,), 25.0, 4
    out: dict[str, object] = {}
    for path in paths:
        for notice in notices:
            rounds = 1 if arguments.quick else 3
            found = compare(path, arguments.workers, changes, seconds, notice, rounds)
            out[f"{path.name}, {found['removal']}"] = found
            print(f"{path.name} for real, {found['removal']}, {len(found['events'])} events in "
                  f"{seconds:.0f} s on {arguments.workers} processes")  # fmt: skip
            for kind in ("real", "simulated"):
                losses = " · ".join(
                    f"{k} {100 * v:.1f}" for k, v in found[kind]["losses"].items() if v > 5e-4
                )
                print(f"  {kind:<10} {100 * found[kind]['goodput']:5.1f}%   {losses}")
            costs = " · ".join(f"{k[:-2]} {v:.2f}" for k, v in found["costs"].items())
            print(f"  difference {100 * found['difference']:.1f}% · measured before, s: {costs}")
            before, during = found["costs"]["startup_s"], found["seen"]["stages"]["startup_s"]
            if _apart(before, during) > 0.25:
                print(f"  not comparable: processes started in {during:.1f} s then, in {before:.1f} s "
                      "before; the machine was not quiet")  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--nodes", type=int, default=32, help="most nodes that the run may have")
    parser.add_argument("--costs", type=Path, help="stage costs of ours: a result of recovery.py")
    parser.add_argument(
        "--quick", action="store_true", help="of --real: the first file, 25 s, kills only"
    )
    parser.add_argument("--real", action="store_true",
                        help="also for real with 2 to 4 worker processes, beside the simulator")  # fmt: skip
    parser.add_argument("--workers", type=int, default=3, help="most processes of --real")
    parser.add_argument("--seconds", type=float, default=150, help="of one --real replay")
    parser.add_argument("--changes", type=int, default=14, help="most changes in it")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if not 2 <= arguments.workers <= 4:
        parser.error("--workers: 2 to 4 processes")
    policies = policies_of(arguments.costs)
    files = {}
    for path in arguments.events:
        if not path.exists():
            parser.error(f"{path} is not there: give a file of Bamboo or Parcae node events")
        files[path.name] = measure(path, arguments.nodes, policies)
    for name, found in files.items():
        print(name)
        for policy, result in found["policies"].items():  # type: ignore[attr-defined]
            losses = " · ".join(
                f"{k} {100 * v:.1f}" for k, v in result["losses"].items() if v > 5e-4
            )
            print(f"  {policy:<42} {100 * result['goodput']:5.1f}%   {losses}")
    real = for_real(arguments) if arguments.real else {}
    if arguments.json:
        result = {
            "files": files, "machine": machine(), "nodes": arguments.nodes, "how": "simulation",
            "costs": {p.name: asdict(p) for p in policies}, "real": real,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
