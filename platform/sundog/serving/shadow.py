"""Mirrored requests: asked of another version after the user's answer is out, compared, and dropped.

A mirrored request can neither slow nor fail the user's: it starts after it, on other replicas, and
is dropped where those are behind. Says how answers differ; what that means is the rollout's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sundog.clock import WALL
from sundog.serving.lane import Lane, NotServed, Outputs
from sundog.serving.observe import MAX_CLASSES, MAX_DIFFERENCES, ServiceCounts
from sundog.serving.tensors import BadTensor, to_numpy

MAX_UNDER_WAY = 32
MAX_BEHIND = 16
ITSELF_EVERY = 8
"""Every so many mirrored requests the running version is asked again too: its own noise."""
_SHOWN = 8


@dataclass(frozen=True)
class Comparison:
    """`flips`: rows whose class changed; `beyond`: values further apart than tolerated; `furthest`:
    the largest relative distance."""

    flips: int = 0
    beyond: int = 0
    furthest: float = 0.0
    shape: bool = False
    scores: bool = False

    @property
    def differs(self) -> bool:
        """Classes decide where an answer has them; else numbers beyond the tolerance."""
        return self.shape or (self.flips > 0 if self.scores else self.beyond > 0)


def decode(outputs: Outputs) -> list[np.ndarray[Any, Any]]:
    return [to_numpy(memoryview(raw), datatype, list(shape)) for datatype, shape, raw in outputs]


def has_classes(values: np.ndarray[Any, Any]) -> bool:
    """Floats with a last dimension of a few: a score for each class."""
    return values.dtype.kind == "f" and values.ndim >= 2 and 2 <= values.shape[-1] <= 100_000


def compare(first: Outputs, second: Outputs, tolerance: float) -> Comparison:
    """How the second answer differs from the first. `tolerance` is relative."""
    flips = beyond = 0
    furthest, scores = 0.0, False
    if len(first) != len(second):
        return Comparison(shape=True)
    for a, b in zip(decode(first), decode(second), strict=True):
        if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
            return Comparison(shape=True)
        if has_classes(a):
            scores = True
            flips += int(np.count_nonzero(a.argmax(-1) != b.argmax(-1)))
        if a.dtype.kind != "f":
            unequal = int(np.count_nonzero(a != b))
            beyond += unequal
            # Labels and words: another one is a flip too.
            flips += unequal
            continue
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        size = np.maximum(np.maximum(np.abs(wide_a), np.abs(wide_b)), 1e-6)
        far = np.abs(wide_a - wide_b) / size
        both_nan = np.isnan(wide_a) & np.isnan(wide_b)
        same = both_nan | (wide_a == wide_b)
        far = np.where(same, 0.0, np.nan_to_num(far, nan=np.inf, posinf=np.inf))
        beyond += int(np.count_nonzero(far > tolerance))
        if far.size:
            furthest = max(furthest, float(far.max()))
    return Comparison(flips, beyond, min(furthest, 1e9), False, scores)


def label_of(outputs: Outputs) -> int | None:
    """The class of an answer's first row, for the mix of answers; None where it has none."""
    for values in decode(outputs[:1]):
        if has_classes(values) and values.size:
            return int(values.reshape(-1, values.shape[-1])[0].argmax()) % MAX_CLASSES
        if values.dtype.kind in "iu" and values.size:
            return int(values.reshape(-1)[0]) % MAX_CLASSES
    return None


class Shadow:
    """Mirrors a share of a service's requests from its running version to the new one."""

    def __init__(self, document: dict[str, Any], baseline: Lane, candidate: Lane) -> None:
        """`document`: {baseline, candidate, share, tolerance} of the route snapshot."""
        self.document = document
        self.baseline: str = document["baseline"]
        self.candidate: str = document["candidate"]
        self._share: float = document["share"]
        self._tolerance: float = document["tolerance"]
        self._lanes = (baseline, candidate)
        self._owed = 0.0
        self._num = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(
        self,
        version: str,
        parsed: Any,
        outputs: Outputs,
        seconds: float,
        request_id: str,
        counts: Callable[[], ServiceCounts],
    ) -> None:
        """A request of the running version was answered: maybe ask the other one as well."""
        if version != self.baseline:
            return
        self._owed += self._share
        if self._owed < 1.0:
            return
        self._owed -= 1.0
        lane = self._lanes[1]
        behind = lane.waiting >= MAX_BEHIND or not lane.connections
        if behind or len(self._tasks) >= MAX_UNDER_WAY:
            counts().dropped += 1
            return
        self._num += 1
        counts().mirror(self.baseline).note(seconds, failed=False)
        work = self._mirror(parsed, outputs, request_id, counts)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _mirror(
        self, parsed: Any, outputs: Outputs, request_id: str, counts: Callable[[], ServiceCounts]
    ) -> None:
        again = self._num % ITSELF_EVERY == 0
        began_s = WALL.monotonic_s()
        try:
            theirs = await self._lanes[1].call(parsed)
        except NotServed:
            counts().mirror(self.candidate).note(WALL.monotonic_s() - began_s, failed=True)
        else:
            counts().mirror(self.candidate).note(WALL.monotonic_s() - began_s, failed=False)
            self._compared(outputs, theirs, request_id, counts())
        baseline = self._lanes[0]
        # The running version is asked twice only while one of its replicas has nothing to do.
        if again and not baseline.waiting and any(c.load == 0 for c in baseline.connections):
            try:
                once_more = await baseline.call(parsed)
            except NotServed:
                return
            found = _compare(outputs, once_more, self._tolerance)
            counts().compared(found.differs, itself=True)

    def _compared(
        self, ours: Outputs, theirs: Outputs, request_id: str, counts: ServiceCounts
    ) -> None:
        found = _compare(ours, theirs, self._tolerance)
        counts.compared(found.differs)
        if found.differs and len(counts.differences) < MAX_DIFFERENCES:
            counts.differences.append(
                {
                    "request": request_id, "flips": found.flips, "beyond": found.beyond,
                    "furthest": found.furthest, self.baseline: shown(ours),
                    self.candidate: shown(theirs),
                }
            )  # fmt: skip


def _compare(first: Outputs, second: Outputs, tolerance: float) -> Comparison:
    try:
        return compare(first, second, tolerance)
    except (BadTensor, ValueError):
        return Comparison(shape=True)


def shown(outputs: Outputs) -> list[Any]:
    """The first values of the first tensor, for people."""
    values: Sequence[Any] = decode(outputs[:1])[0].reshape(-1)[:_SHOWN].tolist()
    return [v.decode(errors="replace")[:40] if isinstance(v, bytes) else v for v in values]
