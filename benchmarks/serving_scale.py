"""Replica scaling on request traces: Sundog's decider, its peers, and the offline optimum.

    python benchmarks/serving_scale.py --trace FILE [--trace FILE ...] [--json OUT] [--svg OUT]

A trace is the Azure LLM CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`) or requests a second, one
integer a line. Setting: 8 slots a replica, starts take 60 s and are billed, one decision every 2 s,
a request is in the SLO if it waits at most 5 s (its service time on top), the first 180 s are left
out, at least one replica. `--quick` leaves out the variants. `--families N` adds N seeds of every
synthetic family that the decider was developed on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from this_machine import machine

from sundog.errors import SundogError
from sundog.sim.replicas import (
    Observation,
    Outcome,
    Policy,
    Setting,
    simulate,
    warm_start,
)
from sundog.sim.scaling_optimum import Optimum, optimum
from sundog.sim.scaling_policies import policies
from sundog.sim.trace_families import FAMILIES
from sundog.sim.traces import (
    DECODE_S_TOKEN,
    PREFILL_TOKENS_S,
    RATE_SERVICE_S,
    Trace,
    jittered,
    load_trace,
    scaled,
)

OURS = "sundog"
GOALS = {"geometric_mean": 1.40, "slo_attainment": 0.995, "variants_slo_attainment": 0.985}


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    started = time.monotonic()
    setting = Setting()
    report: dict[str, Any] = {
        "format": 1,
        "machine": machine(),
        "setting": {
            **asdict(setting),
            "initial": "what the first minute needs",
            "prefill_tokens_s": PREFILL_TOKENS_S,
            "decode_s_token": DECODE_S_TOKEN,
            "service_s_of_rate_traces": RATE_SERVICE_S,
        },
        "goals": GOALS,
        "traces": {},
        "variants": {},
    }
    charts = []
    try:
        for path in arguments.trace:
            trace = load_trace(path)
            report["traces"][trace.name], outcomes = judge(trace, setting)
            charts.append((trace, outcomes))
            if arguments.quick:
                continue
            for variant in (jittered(trace), scaled(trace)):
                report["variants"][variant.name], _ = judge(variant, setting)
        for number in range(1, arguments.families + 1):
            for family in FAMILIES.values():
                trace = family(number)
                report.setdefault("families", {})[trace.name], _ = judge(trace, setting)
    except SundogError as fault:
        print(fault, file=sys.stderr)
        return fault.exit_code
    report["summary"] = summary(report)
    report["seconds"] = round(time.monotonic() - started, 1)
    print_summary(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.svg:
        draw(charts, arguments.svg)
    return 0


class Timed:
    """A policy, and the CPU seconds of each of its decisions."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.took_s: list[float] = []

    def __call__(self, seen: Observation) -> int:
        began_s = time.thread_time()
        count = self.policy(seen)
        self.took_s.append(time.thread_time() - began_s)
        return count


def judge(trace: Trace, setting: Setting) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """Every policy on one trace, against the optimum's lower bound."""
    setting = warm_start(trace, setting)
    best = optimum(trace, setting)
    timed = {
        name: Timed(policy) for name, policy in policies(setting, trace.mean_service_s).items()
    }
    outcomes = {name: simulate(trace, policy, setting) for name, policy in timed.items()}
    took_ms = sorted(1000 * took_s for took_s in timed[OURS].took_s)
    entry = {
        "requests": len(trace),
        "mean_service_s": round(trace.mean_service_s, 4),
        "optimum": asdict(best),
        "decision_ms_p50": round(took_ms[len(took_ms) // 2], 3),
        "policies": {name: row(outcome, best) for name, outcome in outcomes.items()},
    }
    return entry, outcomes


def row(outcome: Outcome, best: Optimum) -> dict[str, float]:
    return {
        "cost_over_optimum": round(outcome.bill_replica_s / best.lower, 4),
        "slo_attainment": round(outcome.slo_attainment, 5),
        "replica_s": outcome.bill_replica_s,
        "starts": outcome.starts,
    }


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Per policy: the geometric mean of the costs, the worst trace and the worst variant."""
    names = next(iter(report["traces"].values()))["policies"]
    return {
        name: {
            "cost_over_optimum_geometric_mean": round(
                math.exp(_mean(math.log(row["cost_over_optimum"]) for row in _rows(report, name))),
                4,
            ),
            "slo_attainment_min": min(row["slo_attainment"] for row in _rows(report, name)),
            "variants_slo_attainment_min": min(
                (row["slo_attainment"] for row in _rows(report, name, "variants")), default=None
            ),
        }
        for name in names
    }


def _rows(report: dict[str, Any], name: str, part: str = "traces") -> list[dict[str, float]]:
    return [entry["policies"][name] for entry in report[part].values()]


def _mean(values: Any) -> float:
    kept = list(values)
    return sum(kept) / len(kept)


def print_summary(report: dict[str, Any]) -> None:
    for part in ("traces", "variants", "families"):
        for name, entry in report.get(part, {}).items():
            best = entry["optimum"]
            print(f"{name} · {entry['requests']:,} requests · optimum {best['lower']:,.0f}", end="")
            print(f"..{best['upper']:,.0f} replica-seconds")
            for policy, row_ in entry["policies"].items():
                cost, inside = row_["cost_over_optimum"], 100 * row_["slo_attainment"]
                print(
                    f"  {policy:18} {cost:6.2f} × · {inside:6.2f}% in SLO · {row_['starts']} starts"
                )
    print("geometric mean of cost / optimum over the traces, worst trace, worst variant")
    for policy, row_ in report["summary"].items():
        worst = row_["variants_slo_attainment_min"]
        print(
            f"  {policy:18} {row_['cost_over_optimum_geometric_mean']:6.3f} · "
            f"{100 * row_['slo_attainment_min']:6.2f}%"
            + (f" · {100 * worst:6.2f}%" if worst is not None else "")
        )


def draw(charts: list[tuple[Trace, dict[str, Outcome]]], path: Path) -> None:
    """Replicas over time under each policy, with the demand in replicas behind them."""
    import matplotlib as mpl
    import numpy as np

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sundog"
    from matplotlib import pyplot

    setting = Setting()
    figure, axes = pyplot.subplots(len(charts), 1, figsize=(9, 2.6 * len(charts)), squeeze=False)
    for axis, (trace, outcomes) in zip(axes[:, 0], charts, strict=True):
        bins = np.arange(0.0, trace.duration_s + 10.0, 10.0)
        work, _ = np.histogram(trace.arrival_s, bins, weights=trace.service_s)
        axis.fill_between(
            bins[:-1] / 60, work / 10 / setting.slots, step="post", color="0.85", label="demand"
        )
        for name in (OURS, "ray_serve_0.7", "knative_kpa"):
            billed = outcomes[name].billed[::5]
            at_min = np.arange(len(billed)) * setting.tick_s * 5 / 60
            width = 1.6 if name == OURS else 0.7
            axis.step(at_min, billed, where="post", linewidth=width, label=name)
        most = max(outcomes[OURS].billed.max(), (work / 10 / setting.slots).max())
        axis.set(title=trace.name, ylabel="replicas", ylim=(0, 1.4 * most))
    axes[0, 0].legend(loc="upper right", fontsize=7, ncols=4)
    axes[-1, 0].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, action="append", required=True)
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--svg", type=Path, help="where to draw replicas over time")
    parser.add_argument("--families", type=int, default=0, metavar="N", help="seeds of each family")
    parser.add_argument("--quick", action="store_true", help="no jittered and scaled variants")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
