"""Finds what nothing refers to: files of registrations that never finished, of deleted versions.

Removes only what is older than the slowest upload could be, and nothing at all when a document of
the root cannot be read, because then it cannot know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from sundog.clock import WALL, Clock
from sundog.errors import NotFound
from sundog.storage import datasets, models, runs, versions
from sundog.storage.documents import decode
from sundog.storage.numbers import taken
from sundog.storage.root import Entry, Root

OLDER_THAN_S = 24 * 3600.0


@dataclass(frozen=True)
class Orphan(Entry):
    """An object that nothing refers to, and why we think so."""

    why: str
    leftover: bool = False
    """A part of an unfinished write, outside the visible keys."""


def orphans(root: Root, older_than_s: float = OLDER_THAN_S, *, clock: Clock = WALL) -> list[Orphan]:
    """What `collect` would remove. FormatTooNew or Corrupt if it cannot be known."""
    before_s = clock.now_s() - older_than_s
    found: list[Orphan] = []
    for folder in (versions.FOLDER, datasets.FOLDER):
        for name in root.children(folder):
            found += _unreferenced(root, folder, name, before_s)
    found += _of_deleted_runs(root, before_s)
    found += (
        Orphan(e.key, e.size, e.modified_s, "an upload that never finished", leftover=True)
        for e in root.leftovers()
        if e.modified_s <= before_s
    )
    return found


def collect(root: Root, older_than_s: float = OLDER_THAN_S, *, clock: Clock = WALL) -> list[Orphan]:
    """Remove the orphans; returns what was removed."""
    found = orphans(root, older_than_s, clock=clock)
    for orphan in found:
        if orphan.leftover:
            root.delete_leftover(orphan)
        else:
            root.delete(orphan.key)
    return found


def _unreferenced(root: Root, folder: str, name: str, before_s: float) -> Iterator[Orphan]:
    # Files first, documents after: a version that is committed in between is seen.
    by_id = _by_id(root.entries(f"{folder}/{name}/files"))
    if not by_id:
        return
    needed = _model_places(root, name) if folder == versions.FOLDER else _data_places(root, name)
    for place, entries in by_id.items():
        # One young file means that its registration may still be going on.
        if place in needed or any(e.modified_s > before_s for e in entries):
            continue
        why = f"no version of {name} has it"
        yield from (Orphan(e.key, e.size, e.modified_s, why) for e in entries)


def _by_id(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """By `<folder>/<name>/files/<id>`."""
    return {
        place: list(group)
        for place, group in groupby(entries, lambda e: "/".join(e.key.split("/")[:4]))
    }


def _model_places(root: Root, name: str) -> set[str]:
    if not taken(root, f"{versions.FOLDER}/{name}"):
        return set()
    return {version.files_at for version in models.Registry(root).versions(name)}


def _data_places(root: Root, name: str) -> set[str]:
    places = set()
    for version in taken(root, f"{datasets.FOLDER}/{name}"):
        for split in datasets.open_dataset(root, f"{name}@{version}").splits.values():
            places |= {key.rpartition("/")[0] for key in split.files}
    return places


def _of_deleted_runs(root: Root, before_s: float) -> Iterator[Orphan]:
    for run_id in root.children(runs.FOLDER):
        prefix = f"{runs.FOLDER}/{run_id}"
        key = f"{prefix}/record.json"
        try:
            record = decode(root.read(key), key, migrations=runs.MIGRATIONS)
        except NotFound:
            continue  # a folder without a record is somebody's who writes it later
        if record.get("state") != runs.DELETED:
            continue
        for entry in root.entries(prefix):
            kept = entry.key in (key, f"{prefix}/lease.json")
            if not kept and entry.modified_s <= before_s:
                yield Orphan(entry.key, entry.size, entry.modified_s, f"run {run_id} was deleted")
