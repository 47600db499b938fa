"""Proof of what a run consumed: its ledger checked against the order of samples that was due.

Reads a run's folder and adds up; changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from sundog.errors import NotFound, RunError
from sundog.runs import ledger
from sundog.runs.checkpoint import Checkpoints
from sundog.runs.ledger import Plan, Verdict
from sundog.storage.root import Root


def verify(root: Root, run_id: str) -> Verdict:
    """0 lost and 0 duplicated among the steps that the newest good checkpoint commits.

    NotFound without such a checkpoint; Corrupt when a segment of the ledger cannot be read.
    """
    checkpoint = Checkpoints(root, f"runs/{run_id}/checkpoints").latest()
    if checkpoint is None:
        raise NotFound(f"{run_id} has no good checkpoint, so nothing is committed", "train first")
    return verify_segments(root, run_id, checkpoint.about["ledger"], checkpoint.step)


def verify_segments(root: Root, run_id: str, segments: Sequence[str], steps: int) -> Verdict:
    entries: list[ledger.Entry] = []
    plans: dict[int, Plan] = {}
    for segment in segments:
        plan, found = ledger.decode(root.read(f"runs/{run_id}/ledger/{segment}"))
        plans |= {entry.step: plan for entry in found}
        entries += found
    if not plans:
        raise RunError(f"{run_id} has a ledger without steps", "start a new run")
    first = plans[min(plans)]
    if not all(first.goes_on(other) for other in set(plans.values())):
        raise RunError(f"{run_id} was trained under different plans", "start a new run")
    return ledger.check(first, entries, steps, plans)


def line(verdict: Verdict) -> str:
    """`samples 0 lost · 0 duplicated · 51,200 committed in 400 steps by 1, 2 workers`."""
    worlds = ", ".join(str(w) for w in verdict.worlds)
    return (
        f"samples {verdict.lost:,} lost · {verdict.duplicated:,} duplicated · "
        f"{verdict.samples:,} committed in {verdict.steps:,} steps by {worlds} workers"
    )
