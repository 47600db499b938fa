"""Entry points of `jobs/*.py`: parse, run, say how it ended in one line, return an exit code.

An expected failure prints its message and its fix, never a stack trace.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sundog.errors import SpecError, SundogError

if TYPE_CHECKING:
    from sundog.storage.datasets import Dataset
    from sundog.storage.root import Root

Argv = Sequence[str] | None


def train(argv: Argv = None) -> None:
    """`jobs/train.py SPEC [--run-id ID] [--root URL]`: train a recipe. Exits 0, 1, 2 or 130."""
    _exit(_train, argv)


def sweep(argv: Argv = None) -> None:
    """`jobs/sweep.py SPEC [--run-id ID] [--root URL]`: search the parameters of a run."""
    _exit(_sweep, argv)


def batch(argv: Argv = None) -> None:
    """`jobs/batch.py SPEC [--run-id ID] [--root URL]`: a model over a Parquet data set."""
    _exit(_batch, argv)


def guard(argv: Argv = None) -> None:
    """`jobs/guard.py [--cpus N] [--gpus N] [--restarts N] [--grace 60s] -- COMMAND …`: any script,
    started again elsewhere when its node leaves or is lost."""
    _exit(_guard, argv)


def ingest(argv: Argv = None) -> None:
    """`jobs/ingest.py [NAME FILE] [--root URL]`: data into the storage root: the digits,
    `python-docs`, `python-topics`, or a file."""
    _exit(_ingest, argv)


def _train(argv: Argv) -> None:
    arguments = _parser("train", "jobs/specs/digits.yaml").parse_args(argv)
    from sundog.spec import RunSpec, load

    spec = load(arguments.spec, RunSpec)
    _import_torch_meanwhile()
    from sundog.runs.driver import open_folder
    from sundog.runs.train import already_ended, run_training

    root = _open(arguments.root or spec.root)
    folder = open_folder(root, spec.run, arguments.run_id)
    _keep_spec(folder, arguments.spec)
    if ended := already_ended(folder):
        print(ended)
        return
    trained = run_training(spec, folder)
    metrics = " · ".join(f"{n} {v:.4f}" for n, v in trained.record["metrics"].items())
    print(f"{trained.run_id} finished · step {trained.record['step']:,} · {metrics}")


def _sweep(argv: Argv) -> None:
    arguments = _parser("sweep", "jobs/specs/digits-sweep.yaml").parse_args(argv)
    from sundog.spec import SweepSpec, load

    spec = load(arguments.spec, SweepSpec)
    from sundog.runs.driver import open_folder
    from sundog.runs.sweep import already_swept, run_sweep

    root = _open(arguments.root or spec.run.root)
    folder = open_folder(root, spec.sweep, arguments.run_id)
    if ended := already_swept(spec, folder):
        print(ended)
        return
    _keep_spec(folder, arguments.spec)
    run_sweep(spec, folder)


def _batch(argv: Argv) -> None:
    arguments = _parser("batch", "jobs/specs/digits-batch.yaml").parse_args(argv)
    from sundog.spec import BatchSpec, load

    spec = load(arguments.spec, BatchSpec)
    from sundog.runs.batch import run_batch
    from sundog.runs.driver import open_folder
    from sundog.runs.train import already_ended

    root = _open(arguments.root or spec.root)
    folder = open_folder(root, spec.batch, arguments.run_id)
    _keep_spec(folder, arguments.spec)
    if ended := already_ended(folder):
        print(ended)
        return
    run_batch(spec, folder)


def _ingest(argv: Argv) -> None:
    parser = argparse.ArgumentParser(
        prog="ingest", description="Write data into the storage root, once.",
        epilog="example: python jobs/ingest.py      (the digits of scikit-learn)",
    )  # fmt: skip
    parser.add_argument(
        "name", nargs="?", default="digits", help="digits, python-docs, python-topics, or a new one"
    )
    parser.add_argument(
        "file", nargs="?", type=Path, help="a .parquet or .csv file, or a folder of splits"
    )
    parser.add_argument("--root", help="storage root; else SUNDOG_ROOT, else the cluster's")
    parser.add_argument("--seed", type=int, default=0, help="of the split into train, val and test")
    arguments = parser.parse_args(argv)
    from sundog.runs import ingest as source

    # Data needs no Ray, unless only the cluster knows where the root is.
    root = _open(arguments.root, connect=not (arguments.root or os.environ.get("SUNDOG_ROOT")))
    if arguments.file:
        dataset = source.ingest_file(root, arguments.name, arguments.file, seed=arguments.seed)
    elif arguments.name in (builtin := _builtin()):
        dataset = builtin[arguments.name](root)
    else:
        raise SundogError(f"no file to make {arguments.name!r} from", "give one: ingest NAME FILE")
    rows = sum(split.rows for split in dataset.splits.values())
    parts = ", ".join(f"{name} {split.rows:,}" for name, split in dataset.splits.items())
    print(f"{dataset.name}, {rows:,} rows → data {dataset.ref} ({parts})")


def _guard(argv: Argv) -> None:
    parser = argparse.ArgumentParser(
        prog="guard", description="Run a training script that knows nothing of Sundog.",
        epilog="example: ray job submit --working-dir . -- "
        "python jobs/guard.py --gpus 1 -- python finetune.py --resume_from_checkpoint",
    )  # fmt: skip
    parser.add_argument("--cpus", type=float, default=1)
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--restarts", type=int, default=3, help="after failures; notices are free")
    parser.add_argument("--grace", default="60s", help="between SIGTERM and SIGKILL at a notice")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    arguments = parser.parse_args(argv)
    from sundog.runs import place
    from sundog.runs.guard import Guard, Guarded
    from sundog.spec.quantity import parse_duration_s

    try:
        grace_s = parse_duration_s(arguments.grace)
    except ValueError as error:
        raise SpecError(f"--grace: {error}") from None
    place.connect()
    resources = {"CPU": arguments.cpus, "GPU": arguments.gpus}
    place.check_fit(1, resources)
    what = Guarded(tuple(arguments.command), resources, arguments.restarts, grace_s)
    Guard(what, say=lambda line: print(line, flush=True)).run()


def _builtin() -> dict[str, Callable[[Root], Dataset]]:
    """Data that ships in packages, by name."""
    from sundog.runs import ingest, ingest_text

    return {
        "digits": ingest.ingest_digits,
        ingest_text.TOKENS: ingest_text.ingest_tokens,
        ingest_text.TOPICS: ingest_text.ingest_topics,
    }


def _parser(name: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        epilog=f"example: ray job submit --working-dir . -- python jobs/{name}.py {example}",
    )
    parser.add_argument("spec", metavar="SPEC", help="the spec, a YAML file")
    parser.add_argument("--run-id", help="its id; one that exists goes on from its last checkpoint")
    parser.add_argument("--root", help="storage root; else the spec's, SUNDOG_ROOT, the cluster's")
    return parser


def _open(address: str | None, *, connect: bool = True) -> Root:
    from sundog.runs import place

    if connect:
        place.connect()
    return place.resolve_root(address)


def _keep_spec(folder: object, path: str) -> None:
    from sundog.storage.runs import RunFolder

    assert isinstance(folder, RunFolder)
    folder.root.write(folder.key("spec.yaml"), Path(path).read_bytes())


def _import_torch_meanwhile() -> None:
    # Two seconds of imports, while Ray connects.
    import importlib

    threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()


def _leave(code: int) -> None:
    """Exit now: what this driver started on the cluster ends with its connection."""
    import ray

    sys.stdout.flush()
    if ray.is_initialized():
        ray.shutdown()
    if threading.active_count() > 1:
        os._exit(code)  # a thread still waits for Ray; nobody waits for it
    sys.exit(code)


def _exit(run: Callable[[Argv], None], argv: Argv) -> None:
    try:
        run(argv)
    except SundogError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _leave(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
