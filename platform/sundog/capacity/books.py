"""What a cluster writes in its ledger: each machine's launch once, and its end at most once.

A machine whose purchase was never answered, and one that ended while no head looked, are put right
from the ledger and a listing. An entry that could not be written is kept and written later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from sundog.capacity.tags import POOL_TAG, TOKEN_TAG, TYPE_TAG, price_of, with_price
from sundog.clock import Clock
from sundog.clouds.base import Machine
from sundog.errors import SundogError
from sundog.ledger import Entry, Ledger

# An entry is as old as the answer to the purchase, which comes after the machine's own birth.
SLACK_S = 3600.0
AGAIN_S = 60.0
MOST_KEPT = 1000
ADOPTED = "found in a listing: the answer to its purchase was lost"


class Books:
    """Thread-safe. `tell(pool, why)` hears of what could not be written."""

    def __init__(
        self, ledger: Ledger, cluster: str, clock: Clock, tell: Callable[[str, str], None]
    ) -> None:
        self.ledger, self.cluster, self.clock, self._tell = ledger, cluster, clock, tell
        self._lock = threading.Lock()
        self._launched: set[str] = set()
        self._ended: set[str] = set()
        self._unseen: dict[str, Machine] = {}
        self._sighted: dict[str, Machine] = {}
        self._interrupted_s: dict[str, float] = {}
        self._whole_from_s: float | None = None
        self._unwritten: list[Entry] = []
        self._again_s = 0.0

    # From the ledger.

    def learn(self, entries: Iterable[Entry], start_s: float) -> None:
        """Take in the entries since `start_s`. Until then, what is missing is not known."""
        born: dict[str, Entry] = {}
        ended: set[str] = set()
        interrupted: dict[str, float] = {}
        for entry in sorted(entries, key=lambda e: e.at_s):
            if entry.cluster == self.cluster and entry.kind == "launch":
                born.setdefault(entry.node, entry)
            elif entry.kind == "terminate":
                ended.add(entry.node)
            elif entry.kind == "interruption":
                interrupted.setdefault(entry.node, entry.at_s)
        with self._lock:
            self._ended |= ended
            self._interrupted_s |= interrupted
            self._unseen = {
                n: _machine(e) for n, e in born.items() if n not in self._launched | self._ended
            }
            self._launched |= set(born)
            self._whole_from_s = start_s

    def settle(self, listed: Mapping[str, Machine], buying: Collection[str]) -> list[Machine]:
        """Write the launch of what is listed and has none; return what should be listed and is not.

        `buying` are the tokens of purchases under way: their answer writes the launch.
        """
        with self._lock:
            # Kept until the ledger is read, though it may be gone by then.
            self._sighted |= {
                i: m for i, m in listed.items()
                if i not in self._launched and m.tags.get(TOKEN_TAG) not in buying
            }  # fmt: skip
            if self._whole_from_s is None:
                return []
            for id_ in listed:
                self._unseen.pop(id_, None)
            first_s = self._whole_from_s + SLACK_S
            adopted = [m for m in self._sighted.values() if m.launched_s >= first_s]
            self._sighted.clear()
            unseen = [m for m in self._unseen.values() if m.id not in self._ended]
        for machine in adopted:
            self.launched(machine, price_of(machine), ADOPTED, machine.launched_s)
        return unseen

    def unseen(self, id_: str) -> Machine | None:
        """A machine that the ledger has as running and no listing of this process has shown."""
        with self._lock:
            return self._unseen.get(id_)

    def interrupted_s(self, id_: str) -> float | None:
        """When its own agent wrote down the notice of its end."""
        with self._lock:
            return self._interrupted_s.get(id_)

    # Into the ledger.

    def launched(
        self, machine: Machine, usd_hour: float | None, why: str, at_s: float | None = None
    ) -> None:
        with self._lock:
            if machine.id in self._launched:
                return
            self._launched.add(machine.id)
        self._write("launch", machine, usd_hour, why, at_s)

    def ended(self, machine: Machine, why: str = "", at_s: float | None = None) -> None:
        with self._lock:
            if machine.id in self._ended:
                return
            self._ended.add(machine.id)
            self._unseen.pop(machine.id, None)
        self._write("terminate", machine, price_of(machine), why, at_s)

    def interrupted(self, machine: Machine, why: str, at_s: float) -> None:
        self._write("interruption", machine, price_of(machine), why, at_s)

    def repriced(self, machine: Machine) -> None:
        self._write("price", machine, price_of(machine), "the market's price changed")

    def _write(
        self, kind: Any, machine: Machine, usd_hour: float | None, why: str,
        at_s: float | None = None,
    ) -> None:  # fmt: skip
        about = {
            "pool": machine.tags.get(POOL_TAG, "head"), "market": machine.market,
            "zone": machine.zone, "shape": machine.shape, "why": why,
            "type": machine.tags.get(TYPE_TAG, ""),
        }  # fmt: skip
        at_s = self.clock.now_s() if at_s is None else at_s
        self._append(Entry(kind, at_s, machine.id, self.cluster, usd_hour, about))

    def _append(self, entry: Entry) -> None:
        with self._lock:
            if self._unwritten:
                # A ledger that was away may be so still: what is bought does not wait for it.
                self._keep([entry])
                return
        self._try([entry])

    def _try(self, entries: list[Entry]) -> None:
        for i, entry in enumerate(entries):
            try:
                self.ledger.append(entry)
            except (OSError, SundogError) as error:
                # The instance is there whether or not it is written down; its tags say so too.
                with self._lock:
                    self._keep(entries[i:])
                    self._again_s = self.clock.now_s() + AGAIN_S
                pool = str(entry.about.get("pool", ""))
                self._tell(pool, f"{entry.node} not written, kept: {error}")
                return

    def _keep(self, entries: list[Entry]) -> None:
        self._unwritten += entries
        del self._unwritten[:-MOST_KEPT]

    def due(self) -> bool:
        """Whether entries are kept that the ledger may take by now."""
        with self._lock:
            return bool(self._unwritten) and self.clock.now_s() >= self._again_s

    def write_kept(self) -> None:
        """Try again what could not be written. May take as long as a ledger that is away does."""
        with self._lock:
            kept, self._unwritten = self._unwritten, []
        self._try(kept)


def _machine(entry: Entry) -> Machine:
    """A machine as its launch entry describes it."""
    about = entry.about
    tags = {POOL_TAG: str(about.get("pool", "")), TYPE_TAG: str(about.get("type", ""))}
    found = Machine(
        entry.node, "running", str(about.get("market", "")), str(about.get("zone", "")),
        str(about.get("shape", "")), entry.at_s, tags,
    )  # fmt: skip
    return found if entry.usd_hour is None else with_price(found, entry.usd_hour)
