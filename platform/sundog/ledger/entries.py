"""The entries of the ledger and where they go. Append-only: nothing here changes or removes one.

An entry is written once, under a name of its own in the storage root or as one line of a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from sundog.errors import AlreadyExists, Corrupt, FormatTooNew

FORMAT = 1
Kind = Literal["launch", "terminate", "price", "interruption"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A node was bought, given back, taken back by the cloud, or changed its price; `at_s` Unix time.

    A node may have several "interruption" entries (the node's own, and the head's that missed it).

    `usd_hour` None: no price was known; then there are node-hours and no dollars.
    """

    kind: Kind
    at_s: float
    node: str
    cluster: str
    usd_hour: float | None = None
    about: dict[str, Any] = field(default_factory=dict)
    run: str | None = None

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)


class Ledger(Protocol):
    def append(self, entry: Entry) -> None: ...

    def since(self, start_s: float) -> Iterator[Entry]:
        """Entries of the day of `start_s` and later."""
        ...


class FileLedger:
    """One JSON line an entry, appended in a single write, so that writers do not interleave."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Entry) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (entry.to_json() + "\n").encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)

    def since(self, start_s: float) -> Iterator[Entry]:
        return (e for e in read_entries(self.path) if e.at_s >= start_s)


class _Reads(Protocol):
    def entries(self, prefix: str = "") -> Iterator[Any]: ...

    def read(self, key: str) -> bytes: ...


class _Keeps(_Reads, Protocol):
    """The part of a storage root that the ledger needs."""

    def create(self, key: str, data: bytes) -> str: ...


class RootLedger:
    """Entries as objects of their own, `ledger/<day>/<time>-<id>.json`: object stores cannot append.

    The id is the entry's hash: one whose writing was not answered, or that two heads found out, is
    there once.
    """

    def __init__(self, root: _Keeps) -> None:
        self._root = root

    def append(self, entry: Entry) -> None:
        day = datetime.fromtimestamp(entry.at_s, UTC).date().isoformat()
        data = entry.to_json().encode()
        name = f"{entry.at_s:.3f}-{hashlib.sha256(data).hexdigest()[:12]}"
        with contextlib.suppress(AlreadyExists):
            self._root.create(f"ledger/{day}/{name}.json", data)

    def since(self, start_s: float) -> Iterator[Entry]:
        first = datetime.fromtimestamp(start_s, UTC).date().isoformat()
        for found in self._root.entries("ledger"):
            if found.key.split("/")[1] >= first:  # the day; keys of other days are not read
                yield parse_entry(self._root.read(found.key).decode("utf-8", "replace"), found.key)


def read_root(root: _Reads) -> Iterator[Entry]:
    """The entries of a storage root, by day and time."""
    for found in root.entries("ledger"):
        yield parse_entry(root.read(found.key).decode("utf-8", "replace"), found.key)


def parse_entry(line: str, where: str = "ledger") -> Entry:
    try:
        data = json.loads(line)
        written = data.pop("format")
        if written > FORMAT:
            raise FormatTooNew(
                f"{where}: a ledger entry has format {written}, this Sundog reads {FORMAT}",
                "read it with the Sundog that wrote it",
            )
        return Entry(**data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{where}: not a ledger entry: {error}", "restore it from a copy") from None


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a ledger file in the order they were written."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            yield parse_entry(line, f"{path}:{number}")
