"""Steps per second of the elastic loop beside a bare torch DDP loop of the same model, in one run.

The same processes (gloo, CPU, one thread each) take turns, a short block each: bare DDP, the loop in
fast mode, with checkpoints at the interval that it chooses and at the shortest one that it ever would
(2 s), in exact mode. A ratio is the median over rounds of loop / bare in the same round; with
checkpoints, of which few rounds have one, the geometric mean. A clock of its own, which stands while
others have their turn, says when a checkpoint is due, and a block lasts until what it has begun to
save is written. Then what a checkpoint stalls the loop for, beside saving it synchronously.

    python benchmarks/train_overhead.py --quick --json out.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from this_machine import machine

from sundog import Columns, Recipe
from sundog.clock import ManualClock
from sundog.runs.exchange import Alone, Group
from sundog.runs.interval import Cadence
from sundog.runs.loop import GO_ON, YIELD, Loop
from sundog.runs.saver import Saver
from sundog.spec.run import RunSpec
from sundog.storage.root import open_root

ROWS = 8192


class Wide(Recipe):
    """A network on made-up rows of 64 numbers; `hidden` sets how much there is to compute."""

    def __init__(self, hidden: int) -> None:
        super().__init__(None)
        self.hidden = hidden
        rng = np.random.default_rng(0)
        self.x = torch.tensor(rng.normal(size=(ROWS, 64)), dtype=torch.float32)
        self.y = self.x[:, :10].argmax(1)

    def model(self) -> torch.nn.Module:
        h = self.hidden
        return torch.nn.Sequential(
            torch.nn.Linear(64, h), torch.nn.ReLU(), torch.nn.Linear(h, h), torch.nn.ReLU(),
            torch.nn.Linear(h, 10),
        )  # fmt: skip

    def dataset(self, split: str) -> Columns:
        if split != "train":
            raise KeyError(split)
        return Columns(input=self.x, label=self.y)

    def loss(self, model, batch, rng):  # type: ignore[no-untyped-def]
        return torch.nn.functional.cross_entropy(model(batch["input"]), batch["label"])

    def optimizer(self, params):  # type: ignore[no-untyped-def]
        return torch.optim.AdamW(params, lr=1e-3)

    def example_inputs(self) -> dict[str, torch.Tensor]:
        return {"input": torch.zeros(2, 64)}


def spec_of(arguments: argparse.Namespace, exact: bool) -> RunSpec:
    return RunSpec.model_validate(
        {"run": "overhead", "recipe": "train_overhead:Wide", "workers": arguments.workers,
         "batch": arguments.batch, "micro_batch": arguments.batch // arguments.workers,
         "steps": 10**9, "exact": exact, "evaluate": 10**9}
    )  # fmt: skip


class Bare:
    """What one would write by hand: DDP, a shuffled sampler, backward, step."""

    def __init__(self, recipe: Wide, arguments: argparse.Namespace, rank: int) -> None:
        torch.manual_seed(0)
        self.recipe, self.arguments, self.rank = recipe, arguments, rank
        self.model = torch.nn.parallel.DistributedDataParallel(recipe.model())
        self.optimizer = recipe.optimizer(self.model.parameters())
        self.data = recipe.dataset("train")
        self.order, self.at = np.random.default_rng(1).permutation(ROWS), 0

    def run(self, steps: int) -> None:
        own = self.arguments.batch // self.arguments.workers
        for _ in range(steps):
            if self.at + self.arguments.batch > ROWS:
                self.at = 0
            low = self.at + self.rank * own
            batch = self.data.batch(self.order[low : low + own])
            self.at += self.arguments.batch
            self.optimizer.zero_grad()
            loss = self.recipe.loss(self.model, batch, None)
            loss.backward()
            self.optimizer.step()
            loss.item()  # the loop shows its loss at every step too


class OwnTime(ManualClock):
    """Time of a kind's own blocks: it stands while others have their turn."""

    def __init__(self) -> None:
        super().__init__()
        self._since_s: float | None = None

    def monotonic_s(self) -> float:
        running = 0.0 if self._since_s is None else time.monotonic() - self._since_s
        return super().monotonic_s() + running

    def go(self) -> None:
        self._since_s = time.monotonic()

    def stop(self) -> None:
        assert self._since_s is not None
        passed, self._since_s = time.monotonic() - self._since_s, None
        self.advance(passed)


def elastic(
    recipe: Wide, arguments: argparse.Namespace, exact: bool, saver: Saver | None = None,
    clock: OwnTime | None = None,
) -> Callable[[int], None]:  # fmt: skip
    """Runs the loop for so many steps, again and again."""
    asked = {"left": 0}

    def ask() -> int:
        asked["left"] -= 1
        return YIELD if asked["left"] <= 0 else GO_ON

    loop = Loop(spec_of(arguments, exact), recipe, asked=ask)
    loop.saver = saver
    loop.join(Group(exact=exact))

    def run(steps: int) -> None:
        asked["left"] = steps
        if clock is not None:
            clock.go()
        loop.run()
        if saver is not None:
            saver.settle()
        if clock is not None:
            clock.stop()

    return run


def member(rank: int, port: int, arguments: argparse.Namespace, root: str, out: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, arguments.workers, rank == 0)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=arguments.workers, timeout=timedelta(seconds=300)
    )
    recipe = Wide(arguments.hidden)

    def saving(every: str) -> Callable[[int], None]:
        cadence, clock = Cadence(every, arguments.workers), OwnTime()
        saver = None
        if rank == 0:  # writes for all
            saver = Saver(open_root(root), f"runs/{every}", keep=2, cadence=cadence, clock=clock)
        return elastic(recipe, arguments, False, saver, clock)

    kinds: dict[str, Callable[[int], Any]] = {
        "bare": Bare(recipe, arguments, rank).run,
        "fast": elastic(recipe, arguments, False),
        "checkpoints": saving("auto"),
        "checkpoints_2s": saving("2s"),
        "exact": elastic(recipe, arguments, True),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for round_ in range(-1, arguments.rounds):  # the first one warms up
        names = list(kinds) if round_ % 2 else list(kinds)[::-1]
        for name in names:
            dist.barrier()
            began = time.perf_counter()
            kinds[name](arguments.steps)
            if round_ >= 0:
                times[name].append(time.perf_counter() - began)
    if rank == 0:
        out.put(times)
    dist.barrier()
    dist.destroy_process_group()


def stalls(arguments: argparse.Namespace, root: str) -> dict[str, float]:
    """Milliseconds that a save keeps the loop waiting, in the background and synchronously."""
    loop = Loop(spec_of(argparse.Namespace(**{**vars(arguments), "workers": 1}), False),
                Wide(arguments.hidden), asked=lambda: YIELD)  # fmt: skip
    saver = Saver(open_root(root), "runs/s", keep=2, cadence=Cadence(10**9))
    loop.join(Alone())
    background, synchronous = [], []
    for i in range(arguments.saves * 2):
        loop.run()
        began = time.perf_counter()
        saver.offer(loop, now=True)
        waited = time.perf_counter() - began
        saver.close()
        if i % 2:
            background.append(waited)
        else:
            synchronous.append(time.perf_counter() - began)
    size = sum(p.numel() for p in loop.params) * 4 * 3
    return {
        "stall_ms": round(1000 * statistics.median(background), 2),
        "synchronous_save_ms": round(1000 * statistics.median(synchronous), 2),
        "state_mb": round(size / 1e6, 1),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    out = context.Queue()
    with tempfile.TemporaryDirectory() as root:
        members = [
            context.Process(target=member, args=(r, port, arguments, root, out), daemon=True)
            for r in range(arguments.workers)
        ]
        for one in members:
            one.start()
        times = out.get(timeout=800)
        for one in members:
            one.join(60)
        found = stalls(arguments, root)
    bare = times.pop("bare")
    ratios = {n: [b / t for b, t in zip(bare, own, strict=True)] for n, own in times.items()}
    found_ratio = {
        name: (statistics.geometric_mean if "checkpoints" in name else statistics.median)(values)
        for name, values in ratios.items()
    }
    return {
        **{name: round(ratio, 4) for name, ratio in found_ratio.items()},
        "spread": {n: [round(min(v), 3), round(max(v), 3)] for n, v in ratios.items()},
        "bare_steps_s": round(arguments.steps / statistics.median(bare), 1),
        "checkpoint": found, "workers": arguments.workers, "hidden": arguments.hidden,
        "batch": arguments.batch, "rounds": arguments.rounds, "steps": arguments.steps,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--saves", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="10 rounds")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.saves = 10, 3
    result = measure(arguments)
    print(json.dumps(result))
    if arguments.json:
        about = machine() | {"torch": torch.__version__}
        out = {**result, "machine": about, "backend": "gloo, CPU"}
        arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
