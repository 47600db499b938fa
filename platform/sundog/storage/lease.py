"""Who drives a run: one holder at a time, with an epoch that only grows.

A holder that lost its lease without noticing is stopped by the epoch (see runs.py), so the clocks
of two machines may differ without harm. A lease whose holder was killed on this very machine ends
with it. Refuses to know what the holder does.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sundog.clock import WALL, Clock
from sundog.errors import Conflict, NotFound, RunBusy, StorageUnavailable
from sundog.storage.documents import decode, encode
from sundog.storage.process import ProcessName
from sundog.storage.root import Root


@dataclass(frozen=True)
class LeaseState:
    """What the document says. `expires_s` is Unix time; 0 when released. `process` is who holds it,
    None where that could not be told."""

    holder: str
    epoch: int
    expires_s: float
    nonce: str
    process: ProcessName | None = None

    def live(self, now_s: float) -> bool:
        """Whether somebody may still drive: it has not run out, and its process is not known dead."""
        return now_s < self.expires_s and not (self.process and self.process.dead)


class Lease:
    """A held lease. `renew` it well before `ttl_s` is over, or let `kept` do so."""

    def __init__(
        self, root: Root, key: str, state: LeaseState, etag: str, ttl_s: float, clock: Clock
    ) -> None:
        self._root, self._key, self._ttl_s, self._clock = root, key, ttl_s, clock
        self._state, self._etag = state, etag
        self._taken = False
        self._lock = threading.Lock()

    @property
    def epoch(self) -> int:
        """Grows with every holder; a write that carries an older one is refused."""
        return self._state.epoch

    @property
    def holder(self) -> str:
        return self._state.holder

    @property
    def taken(self) -> bool:
        """Whether it is known that it is held no more, by a renewal that found another holder."""
        return self._taken

    @property
    def lost(self) -> bool:
        """Somebody took it, it was released, or it ran out unrenewed."""
        return self._taken or not self._state.live(self._clock.now_s())

    def renew(self) -> None:
        """Another `ttl_s` from now. RunBusy if it is lost; StorageUnavailable may be retried."""
        with self._lock:
            if self._taken:
                raise self._lost_error()
            self._swap(self._clock.now_s() + self._ttl_s)

    def release(self) -> None:
        """Let the next holder in at once. Idempotent; a lost lease stays its new holder's."""
        with self._lock:
            if self._taken:
                return
            with contextlib.suppress(RunBusy):
                self._swap(0.0)
            self._taken = True

    @contextlib.contextmanager
    def kept(self) -> Iterator[Lease]:
        """Renew in the background every third of `ttl_s`, release at the end."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(self._ttl_s / 3):
                try:
                    self.renew()
                except RunBusy:
                    return
                except StorageUnavailable:
                    continue  # try until it runs out; `lost` then says so

        thread = threading.Thread(target=renew, name="sundog-lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(StorageUnavailable):  # it runs out by itself
                self.release()

    def _swap(self, expires_s: float) -> None:
        state = replace(self._state, expires_s=expires_s, nonce=uuid.uuid4().hex)
        try:
            self._etag = self._root.swap(self._key, _encode(state), self._etag)
        except Conflict:
            # Our own swap may have landed although its answer was lost on the way.
            found, etag = read(self._root, self._key)
            if found is None or found.epoch != state.epoch:
                self._taken = True
                raise self._lost_error() from None
            self._etag = self._root.swap(self._key, _encode(state), etag)
        self._state = state

    def _lost_error(self) -> RunBusy:
        return RunBusy(
            f"{self._state.holder} lost the lease {self._key}: another driver took it over",
            fix="stop this driver; the other one goes on from the last checkpoint",
        )


def read(root: Root, key: str) -> tuple[LeaseState | None, str | None]:
    try:
        data, etag = root.read_tagged(key)
    except NotFound:
        return None, None
    document = decode(data, key)
    state = LeaseState(
        str(document["holder"]),
        int(document["epoch"]),
        float(document["expires_s"]),
        str(document["nonce"]),
        ProcessName.of(document.get("process")),
    )
    return state, etag


def acquire(
    root: Root, key: str, holder: str, ttl_s: float, *, what: str, clock: Clock = WALL
) -> Lease:
    """Take the lease if nobody holds it, it ran out, or its holder is a dead process of this machine.
    RunBusy names the holder and its end."""
    state, etag = read(root, key)
    now_s = clock.now_s()
    if state and state.live(now_s):
        raise _busy(what, state, now_s)
    epoch = (state.epoch if state else 0) + 1
    mine = LeaseState(holder, epoch, now_s + ttl_s, uuid.uuid4().hex, ProcessName.own())
    try:
        etag = root.swap(key, _encode(mine), etag)
    except Conflict:
        found, _ = read(root, key)
        raise _busy(what, found or mine, now_s) from None
    return Lease(root, key, mine, etag, ttl_s, clock)


def _busy(what: str, state: LeaseState, now_s: float) -> RunBusy:
    ends = datetime.datetime.fromtimestamp(state.expires_s, datetime.UTC).strftime("%H:%M:%S UTC")
    left_s = max(0.0, state.expires_s - now_s)
    return RunBusy(
        f"{what} is driven by {state.holder}; its lease ends at {ends} (in {left_s:.0f} s) "
        "unless it is renewed",
        fix="follow that driver, cancel it, or wait until the lease ends",
    )


def _encode(state: LeaseState) -> bytes:
    return encode(
        {
            "holder": state.holder,
            "epoch": state.epoch,
            "expires_s": state.expires_s,
            "nonce": state.nonce,
            "process": vars(state.process) if state.process else None,
        }
    )
