"""Exactness under change: a run with kills, lost nodes, notices and resizes beside an undisturbed one.

Real processes and real gloo on this machine, `kill -9` for a lost worker. Says how many samples were
lost or consumed twice, and how far losses and parameters are from those of the undisturbed run. With
`--fast` the same for `exact: false`, which promises samples but no bits.

    python benchmarks/exactness.py --quick --json out.json
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from this_machine import machine

from sundog import Columns, Recipe
from sundog.runs.goodput import Account
from sundog.runs.loop import HANDOVER, YIELD
from sundog.runs.processes import Ended, Job, LocalGroup
from sundog.runs.verify import verify
from sundog.spec.run import RunSpec
from sundog.storage.root import open_root

MOST = 4
KINDS = ("worker kill", "node kill", "notice", "resize")


class Digits(Recipe):
    """Scikit-learn's digits with a small network with dropout, as in jobs/recipes/digits.py."""

    def __init__(self, data: object = None) -> None:
        super().__init__(data)
        from sklearn.datasets import load_digits

        raw = load_digits()
        self.x = torch.tensor(raw.data, dtype=torch.float32) / 16
        self.y = torch.tensor(raw.target)

    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(64, 128),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(128, 10),
        )

    def dataset(self, split: str) -> Columns:
        rows = {"train": slice(0, 1500), "val": slice(1500, 1797)}[split]
        return Columns(input=self.x[rows], label=self.y[rows])

    def loss(self, model, batch, rng):  # type: ignore[no-untyped-def]
        return torch.nn.functional.cross_entropy(model(batch["input"]), batch["label"])

    def metrics(self, outputs, batch):  # type: ignore[no-untyped-def]
        return {"accuracy": (outputs.argmax(1) == batch["label"]).float().mean().item()}

    def optimizer(self, params):  # type: ignore[no-untyped-def]
        return torch.optim.AdamW(params, lr=3e-3)

    def example_inputs(self) -> dict[str, torch.Tensor]:
        return {"input": torch.zeros(2, 64)}


def spec_of(steps: int, exact: bool) -> RunSpec:
    return RunSpec.model_validate(
        {"run": "exact", "recipe": "exactness:Digits", "workers": f"1..{MOST}", "batch": 128,
         "steps": steps, "exact": exact, "checkpoint": {"every": 25, "keep": 2}}
    )  # fmt: skip


def undisturbed(spec: RunSpec) -> Ended:
    with LocalGroup(Job(spec, Digits)) as group:
        group.grow(1)
        group.form()
        ended = group.settle()
        assert set(ended) == {"finished"}, ended
        return group.result()


def disturbed(
    spec: RunSpec, faults: int, seed: int, root: str
) -> tuple[Ended, dict[str, int], Account]:
    """The same run under `faults` faults at steps drawn from `seed`."""
    rng, steps = random.Random(seed), spec.steps or 0
    at = sorted(rng.sample(range(3, steps - 3), faults))
    seen = dict.fromkeys(KINDS, 0)
    account = Account()

    with LocalGroup(Job(spec, Digits, root)) as group:
        _timed(account, "startup", group, lambda: group.grow(2))
        for step in [*at, steps]:
            if group.step() >= step and step != steps:
                step = group.step() + 1
            _timed(account, "restart", group, group.form)
            began, world = time.monotonic(), len(group.members)
            if step == steps:
                ended = group.settle()
                account.work(world * (time.monotonic() - began))
                assert set(ended) == {"finished"}, ended
                break
            group.wait_for(step)
            account.work(world * (time.monotonic() - began))
            kind = rng.choice(KINDS)
            seen[kind] += 1
            _timed(account, "restart", group, lambda kind=kind: _strike(group, kind, rng))
            wanted = rng.randint(1, MOST)
            missing = max(1 if not group.members else 0, wanted - len(group.members))
            if missing:
                _timed(account, "startup", group, lambda missing=missing: group.grow(missing))
        ended_with = group.result()
        ended_with.curve = group.curve()
        return ended_with, seen, account


def _strike(group: LocalGroup, kind: str, rng: random.Random) -> None:
    members = len(group.members)
    if kind == "worker kill":
        group.kill(rng.randrange(members))
    elif kind == "node kill":  # two of the workers were on it
        for _ in range(min(2, members)):
            group.kill(rng.randrange(len(group.members)))
    else:
        group.ask(HANDOVER if kind == "notice" else YIELD)  # a checkpoint inside the notice
    group.settle()
    if kind in ("notice", "resize") and len(group.members) > 1:
        group.kill(rng.randrange(len(group.members)))  # it left its group before


def _timed(account: Account, why: str, group: LocalGroup, work) -> None:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    work()
    account.lose(why, max(1, len(group.members)) * (time.monotonic() - began))


def compare(steps: int, faults: int, seed: int, exact: bool) -> dict[str, object]:
    spec = spec_of(steps, exact)
    whole = undisturbed(spec)
    with tempfile.TemporaryDirectory() as root:
        ended, kinds, account = disturbed(spec, faults, seed, root)
        verdict = verify(open_root(root), "local")
    loss = max(abs(whole.curve[s] - v) for s, v in ended.curve.items())
    parameters = float(np.abs(whole.parameters - ended.parameters).max())
    return {
        "seed": seed, "steps": steps, "exact": exact, "lost": verdict.lost, "duplicated": verdict.duplicated,
        "max_loss_diff": loss, "max_param_diff": parameters, "faults": sum(kinds.values()),
        "kinds": kinds, "steps_compared": len(ended.curve), "worlds": list(verdict.worlds),
        "goodput": round(account.goodput, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--fast", action="store_true", help="with exact: false")
    parser.add_argument("--quick", action="store_true", help="60 steps, 4 faults, two seeds")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    steps, faults = (60, 4) if arguments.quick else (arguments.steps, arguments.faults)
    runs = [compare(steps, faults, seed, not arguments.fast) for seed in arguments.seeds]
    worst: dict[str, object] = {
        key: max(r[key] for r in runs)  # type: ignore[type-var]
        for key in ("lost", "duplicated", "max_loss_diff", "max_param_diff")
    }
    worst |= {
        "faults": sum(int(str(r["faults"])) for r in runs),
        "goodput": min(float(str(r["goodput"])) for r in runs),
    }
    print(json.dumps(worst))
    if arguments.json:
        about = machine() | {"torch": torch.__version__}
        out = {**worst, "runs": runs, "machine": about, "backend": "gloo, CPU"}
        arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
