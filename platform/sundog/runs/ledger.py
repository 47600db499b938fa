"""Which samples every committed step consumed: ranges and fingerprints, cheap enough to keep for all.

Records what workers say they read, and checks it against what the sampler would have given them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sundog.errors import Corrupt, FormatTooNew
from sundog.runs.sampler import Sampler, fingerprint, share
from sundog.runs.stream_order import StreamSampler

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One step: by rank, the fingerprint of the rows that it read for its micro-batches."""

    step: int
    prints: tuple[int, ...]

    @property
    def world(self) -> int:
        return len(self.prints)


@dataclass(frozen=True)
class Plan:
    """What fixes a run's order of samples. A run resumes only under the same plan."""

    rows: int
    batch: int
    count: int  # micro-batches in a batch
    seed: int
    block: int = 0  # rows that lie together in streamed data; 0: any row is as near as any other
    window: int = 0  # blocks whose rows are shuffled together

    @property
    def sampler(self) -> Sampler | StreamSampler:
        if self.block:
            return StreamSampler(
                self.rows, self.batch, self.seed, self.count, self.block, self.window
            )
        return Sampler(self.rows, self.batch, self.seed)

    def goes_on(self, other: Plan) -> bool:
        """Whether `other` has the same samples at every step, though perhaps in another number of
        micro-batches. In streamed data these say which rows lie together."""
        return replace(other, count=self.count) == self and (
            self.count == other.count or not self.block
        )

    def rows_of(self, step: int, world: int, rank: int) -> tuple[int, int]:
        """The rows `[start, stop)` of the batch that `rank` of `world` reads at any step."""
        start, stop = share(self.count, world, rank)
        micro = self.batch // self.count
        return start * micro, stop * micro


@dataclass(frozen=True)
class Verdict:
    """What a ledger proves. `lost` and `duplicated` count samples among the committed steps."""

    steps: int
    samples: int
    lost: int
    duplicated: int
    worlds: tuple[int, ...]
    faults: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not (self.lost or self.duplicated or self.faults)


def encode(plan: Plan, entries: Sequence[Entry]) -> bytes:
    """A segment of the ledger as it is stored."""
    lines = [[e.step, *(f"{p:016x}" for p in e.prints)] for e in entries]
    body = {"format": FORMAT, "plan": vars(plan), "entries": lines}
    return json.dumps(body, separators=(",", ":")).encode()


def decode(data: bytes) -> tuple[Plan, list[Entry]]:
    try:
        body: dict[str, Any] = json.loads(data)
        if body["format"] > FORMAT:
            raise FormatTooNew(
                f"a ledger of format {body['format']}; this Sundog reads {FORMAT}",
                "upgrade sundog to the version that wrote the run",
            )
        entries = [Entry(e[0], tuple(int(p, 16) for p in e[1:])) for e in body["entries"]]
        return Plan(**body["plan"]), entries
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Corrupt(f"a ledger segment cannot be read: {error}") from None


def check(
    plan: Plan, entries: Iterable[Entry], steps: int, plans: Mapping[int, Plan] | None = None
) -> Verdict:
    """Whether steps `[0, steps)` consumed exactly what the sampler says, each sample once an epoch.
    `plans`: by step, where some were cut otherwise.

    A fingerprint that does not match counts all of its rows as lost: they are not the ones due.
    """
    sampler = plan.sampler
    seen: dict[int, Entry] = {}
    lost = duplicated = 0
    faults: list[str] = []
    for entry in entries:
        if entry.step in seen or not 0 <= entry.step < steps:
            duplicated += plan.batch
            faults.append(f"step {entry.step} was committed twice or never planned")
            continue
        seen[entry.step] = entry
        for rank, given in enumerate(entry.prints):
            cut = (plans or {}).get(entry.step, plan)
            start, stop = cut.rows_of(entry.step, entry.world, rank)
            if fingerprint(sampler.indices(entry.step, start, stop)) != given:
                lost += stop - start
                faults.append(f"step {entry.step}, worker {rank}: other samples than were due")
    missing = [s for s in range(steps) if s not in seen]
    if missing:
        lost += plan.batch * len(missing)
        faults.append(f"{len(missing)} steps are in no ledger, the first is {missing[0]}")
    worlds = tuple(sorted({e.world for e in seen.values()}))
    return Verdict(steps, steps * plan.batch, lost, duplicated, worlds, tuple(faults[:20]))
