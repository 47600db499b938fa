"""What a sweep's bookkeeping costs beside bare Ray Tune: trials a second, and the driver's memory.

The same short function, the same number at once, on the same Ray, in turns: Tune alone with random
search and its loggers off, then Sundog with its journal, costs, logs and caps.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from this_machine import machine

REPORTS = 3
HERE = Path(__file__).resolve().parent.parent


def trial(params: dict[str, Any], report: Callable[..., None]) -> None:
    """A trial that does nothing but report."""
    for number in range(REPORTS):
        report({"score": params["x"] * (number + 1)})


def bare(trials: int, at_once: int) -> None:
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    def function(config: dict[str, Any]) -> None:
        for number in range(REPORTS):
            tune.report({"score": config["x"] * (number + 1)})

    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(function, {"cpu": 1}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(
                metric="score", mode="max", num_samples=trials, reuse_actors=True,
                search_alg=BasicVariantGenerator(max_concurrent=at_once),
            ),
            run_config=tune.RunConfig(storage_path=folder, name="bare", verbose=0),
        ).fit()  # fmt: skip


def ours(trials: int, at_once: int) -> None:
    from sundog.runs.sweep import run_sweep
    from sundog.spec import SweepSpec
    from sundog.storage.root import open_root
    from sundog.storage.runs import new_run

    spec = SweepSpec.model_validate(
        {
            "sweep": "overhead", "metric": "score", "trials": trials, "concurrent": at_once,
            "space": {"x": {"uniform": [0.0, 1.0]}}, "max_usd": 1000, "usd_node_hour": 0.1,
            "run": {"run": "short", "recipe": "benchmarks.sweep_overhead:trial", "steps": REPORTS},
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run_sweep(spec, new_run(open_root(Path(folder).as_uri()), "overhead", "overhead-1"))


class Memory:
    """The driver's private memory over time, sampled each half second."""

    def __init__(self) -> None:
        self.mib: list[float] = []
        self._end = threading.Event()

    def __enter__(self) -> Memory:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def _run(self) -> None:
        process = psutil.Process()
        while not self._end.wait(0.5):
            self.mib.append(process.memory_info().rss / 2**20)

    @property
    def growth_mib(self) -> float:
        """From the end of the first quarter to the end."""
        return self.mib[-1] - self.mib[len(self.mib) // 4] if len(self.mib) > 4 else 0.0


def measure(run: Callable[[int, int], None], trials: int, at_once: int) -> dict[str, float]:
    gc.collect()
    began = time.perf_counter()
    with Memory() as memory:
        run(trials, at_once)
    took_s = time.perf_counter() - began
    return {
        "seconds": took_s, "trials_s": trials / took_s, "ms_per_trial": 1000 * took_s / trials,
        "driver_growth_mib": memory.growth_mib,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="each of both, in turns")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="60 trials, one round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    trials, rounds = (60, 1) if args.quick else (args.trials, args.rounds)
    os.chdir(HERE)
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(HERE), str(HERE / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        ),
    }  # fmt: skip
    import ray

    ray.init(
        num_cpus=args.at_once, object_store_memory=256 * 2**20, include_dashboard=False,
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    try:
        for run in (bare, ours):
            run(2 * args.at_once, args.at_once)  # imports, the first workers
        rows: dict[str, list[dict[str, float]]] = {"tune": [], "sundog": []}
        for _ in range(rounds):
            rows["tune"].append(measure(bare, trials, args.at_once))
            rows["sundog"].append(measure(ours, trials, args.at_once))
    finally:
        ray.shutdown()
    ratios = [o["seconds"] / b["seconds"] for b, o in zip(*rows.values(), strict=True)]
    result = {
        "benchmark": "sweep_overhead", "trials": trials, "rounds": rounds, "rows": rows,
        "ratio": statistics.median(ratios), "ratios": ratios,
        "machine": machine(),
    }  # fmt: skip
    for name, found in rows.items():
        middle = {k: statistics.median(r[k] for r in found) for k in found[0]}
        print(
            f"{name:7s} {middle['trials_s']:6.1f} trials/s · {middle['ms_per_trial']:6.1f} ms each · "
            f"driver grew {middle['driver_growth_mib']:.1f} MiB"
        )
    print(f"ratio   {result['ratio']:.3f} (median of {rounds}; goal <= 1.1)")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
