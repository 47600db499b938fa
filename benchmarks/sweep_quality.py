"""How good a sweep's winner is for its dollars, on the learning curves of YAHPO's LCBench surrogate.

Random search, ASHA (Ray Tune's own scheduler), Optuna's TPE, both together, and ours, on four
simulated workers, 200 configurations, 52 epochs. The scheduler was designed on the tasks of even
index and seeds 0-3; the tasks of odd index are the check.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from this_machine import machine

from sundog.runs.halving import Board, Rule

EPOCHS, WORKERS, TRIALS, USD_HOUR = 52, 4, 200, 1.0
NAMES = (
    "batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units",
    "max_dropout",
)  # fmt: skip
SHARES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


class LcBench:
    """The surrogate: validation accuracy in percent and seconds, per epoch (Pfisterer et al. 2022)."""

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise SystemExit("the surrogate needs onnxruntime: pip install onnxruntime") from None
        space = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
        self.domains = {h["name"]: h for h in space}
        self.tasks: list[str] = self.domains["OpenML_task_id"]["choices"]
        self._codes = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)

    def draw(self, num: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """`num` configurations, one a row, in the order of NAMES."""
        return np.stack([self.value(n, rng.random(num)) for n in NAMES], axis=1)

    def value(self, name: str, unit: NDArray[np.float64]) -> NDArray[np.float64]:
        domain = self.domains[name]
        low, high = domain["lower"], domain["upper"]
        whole = domain["type"] == "uniform_int"
        top = high + 1 if whole else high
        raw = low * (top / low) ** unit if domain["log"] else low + unit * (top - low)
        return np.clip(np.floor(raw), low, high) if whole else raw

    def curves(self, task: str, configs: NDArray[np.float64]) -> tuple[Any, Any]:
        """(accuracy [n, 52], seconds of each epoch [n, 52]) of configurations [n, 7]."""
        epochs = np.tile(np.arange(1, EPOCHS + 1), len(configs))
        rows = np.column_stack([epochs, np.repeat(configs, EPOCHS, axis=0)]).astype(np.float32)
        codes = np.full((len(rows), 1), self._codes[task], np.int32)
        out = self._session.run(None, {"x_cat": codes, "x_cont": rows})[0]
        total = np.maximum.accumulate(out[:, 0].reshape(-1, EPOCHS), axis=1)
        seconds = np.maximum(np.diff(total, axis=1, prepend=0.0), 1e-3 * total[:, -1:] / EPOCHS)
        return out[:, 1].reshape(-1, EPOCHS).astype(float), seconds.astype(float)


class Searcher(Protocol):
    def next(self) -> tuple[Any, Any] | None: ...
    def tell(self, trial: int, value: float) -> None: ...


class Random:
    """The same 200 configurations for everybody who does not model."""

    def __init__(self, accuracy: Any, seconds: Any) -> None:
        self._rows = iter(zip(accuracy, seconds, strict=True))

    def next(self) -> tuple[Any, Any] | None:
        return next(self._rows, None)

    def tell(self, trial: int, value: float) -> None: ...


class Tpe:
    """Optuna's TPE, asked and told as trials start and end (constant liar for parallel workers)."""

    def __init__(self, bench: LcBench, task: str, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._bench, self._task, self._asked = bench, task, []
        self._dist = {n: self._distribution(optuna, n) for n in NAMES}

    def _distribution(self, optuna: Any, name: str) -> Any:
        d = self._bench.domains[name]
        kind = "Int" if d["type"] == "uniform_int" else "Float"
        return getattr(optuna.distributions, f"{kind}Distribution")(
            d["lower"], d["upper"], log=d["log"]
        )

    def next(self) -> tuple[Any, Any] | None:
        if len(self._asked) >= TRIALS:
            return None
        trial = self._study.ask(self._dist)
        self._asked.append(trial)
        config = np.array([[trial.params[n] for n in NAMES]], dtype=float)
        accuracy, seconds = self._bench.curves(self._task, config)
        return accuracy[0], seconds[0]

    def tell(self, trial: int, value: float) -> None:
        self._study.tell(self._asked[trial], value)


class Scheduler(Protocol):
    def choose(self, fresh: bool) -> int | None: ...
    def started(self, trial: int) -> None: ...
    def report(self, trial: int, epoch: int, value: float, usd: float) -> str: ...


class Fifo:
    """Every trial to its end."""

    def choose(self, fresh: bool) -> int | None:
        return None

    def started(self, trial: int) -> None: ...

    def report(self, trial: int, epoch: int, value: float, usd: float) -> str:
        return "complete" if epoch >= EPOCHS else "continue"


class TuneAsha(Fifo):
    """Ray Tune's AsyncHyperBandScheduler, driven in process: eta 3, rungs 2, 6, 18 of 52."""

    def __init__(self) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self._tune: Any = AsyncHyperBandScheduler(
            time_attr="epoch", metric="value", mode="max", max_t=EPOCHS, grace_period=2,
            reduction_factor=3,
        )  # fmt: skip
        self._trials: dict[int, Any] = {}

    def started(self, trial: int) -> None:
        self._trials[trial] = type("Trial", (), {"trial_id": str(trial)})()
        self._tune.on_trial_add(None, self._trials[trial])

    def report(self, trial: int, epoch: int, value: float, usd: float) -> str:
        said = self._tune.on_trial_result(
            None, self._trials[trial], {"epoch": epoch, "value": value}
        )
        return "continue" if said == "CONTINUE" else "complete"


class Ours:
    """`sundog.runs.halving`, as the Tune adapter drives it."""

    def __init__(self) -> None:
        self._board = Board(Rule(max_age=EPOCHS))

    def choose(self, fresh: bool) -> int | None:
        choice = self._board.choose(fresh)
        if choice.trial is None:
            return None
        self._board.start(choice.trial)
        return int(choice.trial)

    def started(self, trial: int) -> None:
        self._board.start(str(trial))

    def report(self, trial: int, epoch: int, value: float, usd: float) -> str:
        return self._board.report(str(trial), value, usd).action


@dataclass
class Sweep:
    """What a simulated sweep did: the incumbent after each improvement, and what all of it cost."""

    seconds: list[float] = field(default_factory=list)
    usd: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    total_usd: float = 0.0
    total_s: float = 0.0

    def at_usd(self, usd: float) -> float:
        return max((b for b, u in zip(self.best, self.usd, strict=True) if u <= usd), default=0.0)

    def reaches(self, target: float) -> tuple[float, float] | None:
        """(seconds, dollars) when the incumbent first was at least `target`."""
        rows = zip(self.seconds, self.usd, self.best, strict=True)
        return next(((s, u) for s, u, b in rows if b >= target), None)


def simulate(searcher: Searcher, scheduler: Scheduler) -> Sweep:
    """Four workers, a report per epoch; a resumed trial goes on from its checkpoint."""
    sweep, queue, idle, fresh = Sweep(), [], WORKERS, True
    curves: list[tuple[Any, Any]] = []
    epochs: list[int] = []
    now_s, order = 0.0, 0
    while True:
        while idle:
            trial = scheduler.choose(fresh)
            if trial is None and fresh:
                row = searcher.next()
                if row is None:
                    fresh = False
                    continue
                trial = len(curves)
                curves.append(row)
                epochs.append(0)
                scheduler.started(trial)
            if trial is None:
                break
            order, idle = order + 1, idle - 1
            heapq.heappush(queue, (now_s + curves[trial][1][epochs[trial]], order, trial))
        if not queue:
            sweep.total_s = now_s
            return sweep
        now_s, _, trial = heapq.heappop(queue)
        accuracy, seconds = curves[trial]
        usd, value = seconds[epochs[trial]] / 3600 * USD_HOUR, float(accuracy[epochs[trial]])
        epochs[trial] += 1
        sweep.total_usd += usd
        if not sweep.best or value > sweep.best[-1]:
            sweep.seconds.append(now_s)
            sweep.usd.append(sweep.total_usd)
            sweep.best.append(value)
        action = scheduler.report(trial, epochs[trial], value, usd)
        if action == "continue":
            order += 1
            heapq.heappush(queue, (now_s + seconds[epochs[trial]], order, trial))
        else:
            idle += 1
            if action == "complete":
                searcher.tell(trial, value)


def curves_of(bench: LcBench, seed: int, tasks: list[str], cache: Path | None) -> dict[str, Any]:
    """task -> (accuracy, seconds) of its 200 random configurations, kept in `cache` between runs."""
    file = cache / f"lcbench-{seed}-{len(tasks)}.npz" if cache else None
    if file and file.exists():
        kept = np.load(file)
        return {t: (kept["accuracy"][i], kept["seconds"][i]) for i, t in enumerate(tasks)}
    out = {}
    for task in tasks:
        rng = np.random.default_rng([seed, bench.tasks.index(task)])
        out[task] = bench.curves(task, bench.draw(TRIALS, rng))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        accuracy, seconds = (np.array([out[t][i] for t in tasks]) for i in (0, 1))
        np.savez(file, accuracy=accuracy, seconds=seconds)
    return out


def measure(
    bench: LcBench, tasks: list[str], seeds: int, tpe_seeds: int, cache: Path | None
) -> Iterator[list[dict[str, Any]]]:
    """Rows per task, seed and policy, as they come: first what is quick, then what models."""
    plain: dict[tuple[int, str], dict[str, Sweep]] = {}
    for seed in range(seeds):
        curves = curves_of(bench, seed, tasks, cache)
        for task in tasks:
            plain[seed, task] = {
                name: simulate(Random(*curves[task]), scheduler())
                for name, scheduler in (("random", Fifo), ("asha", TuneAsha), ("sundog", Ours))
            }
        yield [r for t in tasks for r in _rows(bench, seed, t, plain[seed, t], plain[seed, t])]
    for seed in range(tpe_seeds):
        for task in tasks:
            modelled = {
                name: simulate(Tpe(bench, task, seed), scheduler())
                for name, scheduler in (("tpe", Fifo), ("tpe+asha", TuneAsha))
            }
            yield _rows(bench, seed, task, modelled, plain[seed, task])


def _rows(
    bench: LcBench, seed: int, task: str, sweeps: dict[str, Sweep], beside: dict[str, Sweep]
) -> list[dict[str, Any]]:
    design = bench.tasks.index(task) % 2 == 0
    return [
        {"seed": seed, "task": task, "design": design, "policy": name}
        | judged(sweep, beside["random"], beside["asha"])
        for name, sweep in sweeps.items()
    ]


def judged(sweep: Sweep, random: Sweep, asha: Sweep) -> dict[str, Any]:
    best = random.best[-1]
    target = best - 0.5
    base, mine = random.reaches(target), sweep.reaches(target)
    assert base is not None
    return {
        "final_regret": best - sweep.best[-1],
        "lost": sweep.best[-1] < target,
        "lost_at_asha_usd": sweep.at_usd(asha.total_usd) < target,
        "speed": base[0] / mine[0] if mine else 0.0,
        "usd_speed": base[1] / mine[1] if mine else 0.0,
        "usd_share": sweep.total_usd / random.total_usd,
        "regret_at": [best - sweep.at_usd(s * random.total_usd) for s in SHARES],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per policy: losses, and [quartile, median, quartile] of the rest."""

    def quartiles(values: list[float]) -> list[float]:
        return [round(float(q), 4) for q in np.percentile(values, [25, 50, 75])]

    out: dict[str, Any] = {}
    for name in dict.fromkeys(r["policy"] for r in rows):
        mine = [r for r in rows if r["policy"] == name]
        lost = sum(r["lost"] for r in mine)
        out[name] = {
            "sweeps": len(mine),
            "lost": lost,
            "lost_of_34": round(34 * lost / len(mine), 2),
            "lost_at_asha_usd": sum(r["lost_at_asha_usd"] for r in mine),
            "speed": quartiles([r["speed"] for r in mine]),
            "usd_speed": quartiles([r["usd_speed"] for r in mine]),
            "usd_share": quartiles([r["usd_share"] for r in mine]),
            "final_regret": quartiles([r["final_regret"] for r in mine]),
            "regret_at": [quartiles([r["regret_at"][i] for r in mine]) for i in range(len(SHARES))],
        }
    return out


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2))
    for name, result in results["all"].items():
        low, middle, high = np.array(result["regret_at"]).T
        (line,) = axis.plot(SHARES, middle, marker="o", ms=3, label=name)
        axis.fill_between(SHARES, low, high, alpha=0.12, color=line.get_color())
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=0.5)
    axis.set_xlabel("dollars, as a share of random search's")
    axis.set_ylabel("accuracy points below random's best (median, quartiles)")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "data", type=Path, help="folder of model.onnx, config_space.json, encoding.json"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tpe-seeds", type=int, default=1, help="of these, how many with Optuna")
    parser.add_argument("--cache", type=Path, help="folder that keeps the curves between runs")
    parser.add_argument("--quick", action="store_true", help="four tasks, one seed")
    parser.add_argument("--json", type=Path, help="where results go")
    parser.add_argument("--plot", type=Path, help="where the SVG goes")
    args = parser.parse_args()
    if not (args.data / "model.onnx").exists():
        raise SystemExit(f"no model.onnx in {args.data}: name the folder of the LCBench surrogate")
    bench, started = LcBench(args.data), time.monotonic()
    tasks = bench.tasks[:4] if args.quick else bench.tasks
    seeds = 1 if args.quick else args.seeds
    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for more in measure(bench, tasks, seeds, min(seeds, args.tpe_seeds), args.cache):
        rows += more
        print(f"{time.monotonic() - started:6.0f} s  {len(rows)} sweeps", flush=True)
        results = {
            "all": summary(rows),
            "design tasks": summary([r for r in rows if r["design"]]),
            "check tasks": summary([r for r in rows if not r["design"]]),
        }
        if args.json:
            about = {"benchmark": "sweep_quality", "machine": machine(), "seeds": seeds,
                     "shares": SHARES, "results": results}  # fmt: skip
            args.json.write_text(json.dumps(about, indent=1) + "\n")
    for group, by_policy in results.items():
        for name, r in by_policy.items():
            print(
                f"{group:13s} {name:9s} lost {r['lost']:3d} of {r['sweeps']:3d} "
                f"({r['lost_of_34']:.1f} of 34, {r['lost_at_asha_usd']} at ASHA's dollars)  "
                f"speed {r['speed']}  dollars {r['usd_share']}"
            )
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
