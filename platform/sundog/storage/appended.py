"""Text that grows: appended in place on a local root, as numbered parts on S3.

S3 has no append, so a writer gathers what it is given and puts one small part at most every second
at first, every ten seconds after the first minutes (or each 256 KiB, or on flush). A writer that is
killed loses what it gathered since its last part; nothing that was written is ever rewritten.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import uuid
import weakref
from collections.abc import Iterator

from sundog.clock import WALL, Clock
from sundog.errors import NotFound, SundogError
from sundog.storage.local import LocalRoot
from sundog.storage.root import Root

PART_EVERY_S = 1.0
_SLOWEST_PART_S = 10.0
_PARTS_PER_STEP = 60  # after so many parts one second more between two of them
_PART_BYTES = 256 << 10


class Appender:
    """Appends to `key`; several writers (processes) may append to the same key.

    Each call's bytes stay together. On S3 parts of different writers are ordered by the clock of
    the machine that wrote them.
    """

    def __init__(self, root: Root, key: str, *, clock: Clock = WALL) -> None:
        self._root = root
        self._key = key
        self._clock = clock
        self._writer = uuid.uuid4().hex[:8]
        self._num_parts = 0
        self._gathered: list[bytes] = []
        self._last_part_s = float("-inf")
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        if not isinstance(root, LocalRoot):
            # What is still gathered when the process ends in peace is not lost.
            atexit.register(_flush_at_exit, weakref.ref(self))

    def append(self, data: bytes) -> None:
        """StorageUnavailable. On S3 what could not be written is kept for the next attempt."""
        if isinstance(self._root, LocalRoot):
            self._root.append(self._key, data)
            return
        with self._lock:
            self._gathered.append(data)
            waited_s = self._clock.monotonic_s() - self._last_part_s
            if waited_s >= self._every_s or sum(map(len, self._gathered)) >= _PART_BYTES:
                self._put()
            elif self._timer is None:
                self._timer = threading.Timer(self._every_s - waited_s, self._put_later)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Everything given so far is in the root when this returns."""
        with self._lock:
            self._put()

    close = flush

    @property
    def _every_s(self) -> float:
        """Short runs are followed closely; long ones do not pile up parts."""
        return min(_SLOWEST_PART_S, PART_EVERY_S * (1 + self._num_parts // _PARTS_PER_STEP))

    def _put_later(self) -> None:
        with self._lock:
            self._timer = None
            # Nobody would see the error here; the next append or flush tries again and raises.
            with contextlib.suppress(SundogError):
                self._put()

    def _put(self) -> None:
        if not self._gathered:
            return
        self._last_part_s = self._clock.monotonic_s()
        name = f"{int(self._clock.now_s() * 1000):014d}-{self._writer}-{self._num_parts:06d}"
        self._root.write(f"{_parts(self._key)}/{name}", b"".join(self._gathered))
        self._num_parts += 1
        self._gathered.clear()


def read_from(root: Root, key: str, position: str = "") -> tuple[bytes, str]:
    """What was appended after `position` ("" is the start), and the position after it.

    A position is opaque; keep it to follow a growing text.
    """
    if isinstance(root, LocalRoot):
        start = int(position or 0)
        try:
            data = b"".join(root.stream(key, start))
        except NotFound:
            data = b""
        return data, str(start + len(data))
    names = [name for name in root.children(_parts(key)) if name > position]
    pieces = root.read_many([f"{_parts(key)}/{name}" for name in names])
    # None: the run is being deleted.
    return b"".join(p for p in pieces if p is not None), names[-1] if names else position


def lines(root: Root, key: str) -> Iterator[str]:
    """Whole lines; a last line that is still being written is left out."""
    data, _ = read_from(root, key)
    for line in data.split(b"\n")[:-1]:
        yield line.decode("utf-8", "replace")


def _flush_at_exit(reference: weakref.ref[Appender]) -> None:
    appender = reference()
    if appender is not None:
        with contextlib.suppress(SundogError):  # nobody is left to be told
            appender.flush()


def _parts(key: str) -> str:
    return f"{key}.parts"
