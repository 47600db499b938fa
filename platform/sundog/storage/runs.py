"""Run folders: the record, events, logs and the lease of each run, under `runs/<run_id>/`.

`record.json` is a run's truth and every change of it is a compare-and-swap that carries the epoch
of the writer's lease. Refuses to know what a run computes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sundog.clock import WALL, Clock
from sundog.errors import AlreadyExists, Conflict, Corrupt, NotFound, RunBusy
from sundog.storage import appended, lease
from sundog.storage.appended import Appender
from sundog.storage.documents import Document, Migrations, decode, encode, require_name
from sundog.storage.lease import Lease
from sundog.storage.numbers import near
from sundog.storage.root import Root, checked

FOLDER = "runs"
ENDED = ("finished", "failed", "cancelled")
DELETED = "deleted"
MIGRATIONS: Migrations = {}
_ATTEMPTS = 100


class RunFolder:
    """One run's folder. Picklable as long as nothing was appended through it."""

    def __init__(self, root: Root, run_id: str, *, clock: Clock = WALL) -> None:
        self.root = root
        self.run_id = run_id
        self._clock = clock
        self._lease: Lease | None = None
        self._appenders: dict[str, Appender] = {}

    def __reduce__(self) -> tuple[object, ...]:
        # A copy in another process reads and appends; the lease stays with the driver.
        return (RunFolder, (self.root, self.run_id))

    def key(self, path: str) -> str:
        """The storage key of a path inside the run."""
        return checked(f"{FOLDER}/{self.run_id}/{path}")

    # -- the record ------------------------------------------------------------------------

    def record(self) -> Document:
        """`{format, run_id, name, kind, state, started_s, …}`. NotFound."""
        return self._record()[0]

    def update(self, **changes: Any) -> Document:
        """Merge `changes` into the record and return it.

        Through a folder that acquired the lease the write carries its epoch: RunBusy once another
        driver took over, even if this one has not noticed. A folder without a lease (a CLI that
        cancels) writes too, but never after the epoch moved in between.
        """
        for _ in range(_ATTEMPTS):
            record, etag = self._record()
            self._require_fence(record)
            record = {**record, **changes, "updated_s": self._clock.now_s()}
            try:
                self.root.swap(self.key("record.json"), encode(record), etag)
            except Conflict:
                continue
            return record
        raise Conflict(f"the record of {self.run_id} keeps changing", fix="try again")

    # -- the lease -------------------------------------------------------------------------

    def acquire(self, holder: str, ttl_s: float = 10) -> Lease:
        """Become the driver. RunBusy while another live lease is held."""
        taken = lease.acquire(
            self.root, self.key("lease.json"), holder, ttl_s, what=self.run_id, clock=self._clock
        )
        self._lease = taken
        # From here on a write of the driver before us fails: its record's epoch is behind.
        self.update(epoch=taken.epoch, holder=holder)
        return taken

    def require_lease(self) -> None:
        """RunBusy unless this folder's lease is still the current one, as the root says.

        Call it right before a commit outside the record (a checkpoint). It narrows the window;
        what must be exact goes through `update`.
        """
        state, _ = lease.read(self.root, self.key("lease.json"))
        if self._lease is None or state is None or state.epoch != self._lease.epoch:
            raise self._fenced(state.holder if state else "nobody")

    def check_lease(self) -> None:
        """RunBusy once a renewal has found that another driver took over. Asks the root nothing, so
        that it may be called as often as one likes."""
        if self._lease is not None and self._lease.taken:
            raise self._fenced("another driver")

    def driver(self) -> str | None:
        """Who holds a live lease, or None."""
        state, _ = lease.read(self.root, self.key("lease.json"))
        return state.holder if state and state.live(self._clock.now_s()) else None

    # -- events and logs -------------------------------------------------------------------

    def event(self, name: str, **fields: Any) -> None:
        """Append one event. Names are in telemetry.py."""
        event = {"event": name, "at_s": self._clock.now_s(), **fields}
        line = json.dumps(json.loads(encode(event)), separators=(",", ":"))
        self._appender("events.jsonl").append(f"{line}\n".encode())

    def events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first; a line that a crash cut short is skipped."""
        found = []
        for line in appended.lines(self.root, self.key("events.jsonl")):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def append_log(self, rank: int | str, text: str) -> None:
        """Add text to a rank's log (a worker's number, or 'driver')."""
        self._appender(f"logs/{rank}.log").append(text.encode())

    def ranks(self) -> list[str]:
        """Whose logs there are."""
        names = {n.removesuffix(".parts") for n in self.root.children(self.key("logs"))}
        return sorted((n.removesuffix(".log") for n in names), key=_by_number)

    def logs(
        self, rank: int | str | None = None, *, follow: bool = False, poll_s: float = 1.0
    ) -> Iterator[str]:
        """Lines of a rank's log, or of all (each with its rank in front).

        `follow` goes on until the run has ended, or nobody drives it any more.
        """
        positions: dict[str, str] = {}
        partial: dict[str, bytes] = {}
        while True:
            ended = not follow or self.record().get("state") in ENDED
            if not ended and self.record().get("state") == "running":
                # A driver that was killed cannot say that it ended; its lease runs out.
                ended = self.driver() is None
            for name in [str(rank)] if rank is not None else self.ranks():
                key = self.key(f"logs/{name}.log")
                data, positions[name] = appended.read_from(self.root, key, positions.get(name, ""))
                *whole, rest = (partial.pop(name, b"") + data).split(b"\n")
                partial[name] = rest
                if ended and rest:
                    whole.append(rest)
                prefix = "" if rank is not None else f"[{name}] "
                yield from (f"{prefix}{line.decode('utf-8', 'replace')}" for line in whole)
            if ended:
                return
            self._clock.sleep(poll_s)

    def flush(self) -> None:
        """Events and logs given so far are in the root when this returns."""
        for appender in self._appenders.values():
            appender.flush()

    # -- checkpoints -----------------------------------------------------------------------

    def checkpoint_steps(self) -> list[int]:
        """Steps with anything stored, ascending; whether one is whole is its writer's to say."""
        return sorted(int(n) for n in self.root.children(self.key("checkpoints")) if n.isdigit())

    # -- inside ----------------------------------------------------------------------------

    def _record(self) -> tuple[Document, str]:
        key = self.key("record.json")
        try:
            data, etag = self.root.read_tagged(key)
        except NotFound:
            raise near(self.root, "run", FOLDER, self.run_id) from None
        record = decode(data, key, migrations=MIGRATIONS)
        if record.get("state") == DELETED:
            raise NotFound(f"run {self.run_id} was deleted", fix="see sundog runs list")
        return record, etag

    def _require_fence(self, record: Document) -> None:
        if self._lease is not None and record.get("epoch", 0) > self._lease.epoch:
            raise self._fenced(str(record.get("holder")))

    def _fenced(self, holder: str) -> RunBusy:
        return RunBusy(
            f"{self.run_id} is driven by {holder} now: this driver's lease ran out",
            fix="stop this driver; the other one goes on from the last checkpoint",
        )

    def _appender(self, path: str) -> Appender:
        if path not in self._appenders:
            self._appenders[path] = Appender(self.root, self.key(path), clock=self._clock)
        return self._appenders[path]


def new_run(root: Root, name: str, run_id: str | None = None, *, clock: Clock = WALL) -> RunFolder:
    """A run's folder: `<name>-<n>` with the next free n, or `run_id`, which resumes if it exists.

    A number stays taken after its run is deleted; a deleted `run_id` may be given again.
    """
    require_name(name, "run")
    if run_id is None:
        return _numbered(root, name, clock)
    folder = RunFolder(root, require_name(run_id, "run"), clock=clock)
    key = folder.key("record.json")
    try:
        root.create(key, _fresh(name, run_id, clock))
    except AlreadyExists:
        data, etag = root.read_tagged(key)
        before = decode(data, key, migrations=MIGRATIONS)
        if before.get("state") == DELETED:
            # The epoch goes on, so that a driver of the deleted run cannot write into this one.
            root.swap(key, _fresh(name, run_id, clock, before.get("epoch", 0)), etag)
    return folder


def open_run(root: Root, run_id: str, *, clock: Clock = WALL) -> RunFolder:
    """An existing run. NotFound names what is near."""
    folder = RunFolder(root, require_name(run_id, "run"), clock=clock)
    folder.record()
    return folder


def list_runs(root: Root) -> list[Document]:
    """The records of all runs, the latest start first."""
    records = []
    keys = [f"{FOLDER}/{run_id}/record.json" for run_id in root.children(FOLDER)]
    for key, data in zip(keys, root.read_many(keys), strict=True):
        try:
            record = decode(data, key, migrations=MIGRATIONS) if data else None
        except Corrupt:
            continue  # the others are still worth a list; `runs show` names the fault
        if record and record.get("state") != DELETED:
            records.append(record)
    return sorted(records, key=lambda r: (-r["created_s"], r["run_id"]))


def delete_run(root: Root, run_id: str, *, clock: Clock = WALL) -> None:
    """Delete a run's folder; a mark stays, so its number is not given out again. RunBusy."""
    folder = open_run(root, run_id, clock=clock)
    held = folder.acquire("delete", ttl_s=60)  # so that no driver starts while we delete
    tombstone = encode(
        {
            "run_id": run_id,
            "state": DELETED,
            "deleted_s": clock.now_s(),
            "epoch": held.epoch,
            "holder": held.holder,
        }
    )
    root.write(folder.key("record.json"), tombstone)
    keep = {folder.key("record.json"), folder.key("lease.json")}
    for entry in list(root.entries(f"{FOLDER}/{run_id}")):
        if entry.key not in keep:
            root.delete(entry.key)
    held.release()


def _numbered(root: Root, name: str, clock: Clock) -> RunFolder:
    start = f"{name}-"
    numbers = [
        int(rest)
        for run_id in root.children(FOLDER)
        if run_id.startswith(start) and (rest := run_id.removeprefix(start)).isdigit()
    ]
    n = max(numbers, default=0)
    while True:
        n += 1
        folder = RunFolder(root, f"{name}-{n}", clock=clock)
        try:
            root.create(folder.key("record.json"), _fresh(name, folder.run_id, clock))
        except AlreadyExists:
            continue
        return folder


def _fresh(name: str, run_id: str, clock: Clock, epoch: int = 0) -> bytes:
    return encode(
        {
            "run_id": run_id,
            "name": name,
            "kind": None,
            "state": "queued",
            "created_s": clock.now_s(),
            "started_s": None,
            "ended_s": None,
            "step": 0,
            "steps": None,
            "metrics": {},
            "workers": 0,
            "message": "",
            "epoch": epoch,
            "holder": None,
        }
    )


def _by_number(rank: str) -> tuple[bool, int, str]:
    return (not rank.isdigit(), int(rank) if rank.isdigit() else 0, rank)
