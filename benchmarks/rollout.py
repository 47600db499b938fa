"""Seeded simulated rollouts: how often a good version is rolled back, a bad one caught, users hit.

Every row runs the decider that production runs; in the first world beside it, on the same seeds,
fixed thresholds (Flagger's and Argo Rollouts' documented settings) and a test at every look.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from this_machine import machine

from sundog.serving.rollout_facts import Plan
from sundog.sim.rollout import Ours, Outcome, Policy, Version, World, run
from sundog.sim.rollout_peers import Peeking, argo, flagger

BASIC = ("errors", "latency")
ALL = ("errors", "latency", "answers", "feedback")

WORLDS = {
    "1,200/min, 1% errors": World(),
    "1,200/min, 0.1% errors": World(error_rate=0.001),
    "1,200/min, no shocks": World(error_swing=0.0, latency_swing=0.0, incident_chance=0.0),
    "300/min, 1% errors": World(requests_min=300),
    "1,200/min, errors in clusters of 3": World(cluster=3.0),
}
GOOD = Version("as good", True)
OPERATIONAL = (
    Version("errors ×1.5", False, error_ratio=1.5),
    Version("errors ×2", False, error_ratio=2.0),
    Version("errors ×5", False, error_ratio=5.0),
    Version("latency ×1.1", False, latency_ratio=1.1),
    Version("latency ×1.3", False, latency_ratio=1.3),
    Version("latency ×2", False, latency_ratio=2.0),
    Version("crashes at load", False, crashes=True),
)
SUBTLE = (
    Version("feedback −5 points", False, quality_drop=0.05),
    Version("feedback −10 points", False, quality_drop=0.10),
    Version("10% of answers differ", False, differ=0.10),
)
PEERS: dict[str, Callable[[], Policy]] = {
    "flagger": flagger,
    "flagger, tuned to the service": lambda: flagger(max_p99_s=0.2, min_success=0.98),
    "argo": argo,
    "test at every look": Peeking,
}


def ours(guards: tuple[str, ...], strategy: str = "canary") -> Callable[[], Policy]:
    plan = Plan("v1", "v2", strategy=strategy, guards=guards)  # type: ignore[arg-type]
    return lambda: Ours(plan)


def summary(outcomes: list[Outcome], good: bool) -> dict[str, float]:
    def share(*phases: str) -> float:
        return sum(o.phase in phases for o in outcomes) / len(outcomes)

    minutes = [o.minutes for o in outcomes if o.phase == ("promoted" if good else "rolled-back")]
    exposed = sorted(o.exposed for o in outcomes)
    return {
        "rolled_back": share("rolled-back"),
        "promoted": share("promoted", "cleared"),
        "undecided": share("stepping", "inconclusive", "shadowing"),
        "median_minutes": statistics.median(minutes) if minutes else float("nan"),
        "median_exposed": statistics.median(exposed),
        "p95_exposed": exposed[int(0.95 * (len(exposed) - 1))],
    }


def measure(
    world: World, version: Version, policy: Callable[[], Policy], num: int, minutes: int
) -> dict[str, float]:
    return summary([run(world, version, policy(), s, minutes) for s in range(num)], version.good)


def measure_all(num: int, minutes: int, names: list[str]) -> Iterator[dict[str, dict[str, object]]]:
    """All results so far, after every version of every world."""
    results: dict[str, dict[str, object]] = {}
    for name in names:
        world = WORLDS[name]
        rows: dict[str, object] = {}
        results[name] = rows
        for version in (GOOD, *OPERATIONAL):
            row = {"sundog": measure(world, version, ours(BASIC), num, minutes)}
            for peer, policy in PEERS.items() if name == next(iter(WORLDS)) else ():
                row[peer] = measure(world, version, policy, num, minutes)
            rows[version.name] = row
            _show(name, version.name, row)
            yield results
        for version in (GOOD, *SUBTLE):
            row = {"sundog": measure(world, version, ours(ALL), num, minutes)}
            rows[f"{version.name} (all four guards)"] = row
            _show(name, f"{version.name} (all four guards)", row)
            yield results


def _show(world: str, version: str, row: dict[str, dict[str, float]]) -> None:
    for policy, r in row.items():
        print(
            f"{world:36s} {version:38s} {policy:30s} rolled back {r['rolled_back']:6.1%}"
            f"  promoted {r['promoted']:6.1%}  undecided {r['undecided']:6.1%}"
            f"  {r['median_minutes']:5.1f} min  exposed {r['median_exposed']:7.3%}",
            flush=True,
        )


def plot(results: dict[str, dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    world, rows = next(iter(results.items()))
    names = [v.name for v in (GOOD, *OPERATIONAL)]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    height = 0.8 / (1 + len(PEERS))
    for i, policy in enumerate(("sundog", *PEERS)):
        at = [k + (i - len(PEERS) / 2) * height for k in range(len(names))]
        for axis, key in zip(axes, ("rolled_back", "median_exposed"), strict=True):
            values = [100 * rows[n][policy][key] for n in names]  # type: ignore[index]
            axis.barh(at, values, height, label=policy)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("rolled back, %")
    axes[1].set_xlabel("candidate's requests of the first hour, %, median")
    axes[1].set_xscale("symlog", linthresh=0.1)
    axes[1].legend(fontsize=8)
    figure.suptitle(f"Simulated rollouts, {world}")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=200, help="per version and world")
    parser.add_argument("--minutes", type=int, default=240, help="how long a rollout may take")
    parser.add_argument("--quick", action="store_true", help="20 rollouts, one world")
    parser.add_argument("--json", type=Path, help="where results go")
    parser.add_argument("--plot", type=Path, help="where the SVG goes")
    args = parser.parse_args()
    num = 20 if args.quick else args.rollouts
    names = list(WORLDS)[:1] if args.quick else list(WORLDS)
    results: dict[str, dict[str, object]] = {}
    for results in measure_all(num, args.minutes, names):
        if args.json:
            about = {
                "benchmark": "rollout", "rollouts": num, "minutes": args.minutes,
                "machine": machine(), "worlds": {n: asdict(WORLDS[n]) for n in results},
                "results": results,
            }  # fmt: skip
            args.json.write_text(json.dumps(about, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
