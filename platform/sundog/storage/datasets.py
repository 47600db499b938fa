"""Datasets: immutable versions of named tables, each split in Parquet files with their hashes.

Layout: `data/<name>/<version>/manifest.json`, files under `data/<name>/files/<fresh id>/`.
Refuses to change a version: new rows are a new version.
"""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sundog.clock import WALL, Clock
from sundog.errors import Corrupt, NotFound
from sundog.storage.documents import Migrations, decode, encode, require_name
from sundog.storage.numbers import commit_next, near, parse_version, taken
from sundog.storage.root import Root, file_digest

if TYPE_CHECKING:
    import pyarrow

FOLDER = "data"
_FILE_BYTES = 128 << 20
GROUP_BYTES = 2 << 20  # what a reader that streams fetches at once
_MIGRATIONS: Migrations = {}


@dataclass(frozen=True)
class Split:
    """`files` are keys of the root; `sha256` has one hash for each of them, in their order."""

    files: tuple[str, ...]
    rows: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """One version of a dataset. Picklable: it holds addresses, not rows."""

    root: Root
    name: str
    version: int
    splits: Mapping[str, Split]
    about: Mapping[str, Any] = field(default_factory=dict)
    created_s: float = 0.0

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    def split(self, name: str) -> Split:
        try:
            return self.splits[name]
        except KeyError:
            raise NotFound(
                f"{self.ref} has no split {name!r}", fix=f"it has: {', '.join(self.splits)}"
            ) from None

    def table(self, split: str) -> pyarrow.Table:
        """All rows of a split, in memory."""
        import pyarrow
        import pyarrow.parquet

        filesystem, base = self.root.filesystem()
        tables = []
        for key in self.split(split).files:
            try:
                tables.append(pyarrow.parquet.read_table(f"{base}/{key}", filesystem=filesystem))
            except FileNotFoundError:
                raise _damaged(self.ref, f"{key} is gone") from None
            except pyarrow.ArrowInvalid as error:
                raise _damaged(self.ref, f"{key} is not readable ({error})") from error
        return pyarrow.concat_tables(tables)

    def uris(self, split: str) -> list[str]:
        """Addresses of a split's Parquet files."""
        return [self.root.uri(key) for key in self.split(split).files]

    def verify(self) -> list[str]:
        """Faults of the stored files against their hashes; empty if there are none."""
        faults = []
        for split in self.splits.values():
            for key, expected in zip(split.files, split.sha256, strict=True):
                try:
                    found = digest(self.root, key)
                except NotFound:
                    faults.append(f"{key}: missing")
                    continue
                if found != expected:
                    faults.append(f"{key}: sha256 is {found[:12]}…, not {expected[:12]}…")
        return faults


def write_dataset(
    root: Root,
    name: str,
    splits: Mapping[str, pyarrow.Table],
    about: Mapping[str, Any] | None = None,
    *,
    group_bytes: int = GROUP_BYTES,
    clock: Clock = WALL,
) -> Dataset:
    """Write a new version; if the latest one has the same bytes and `about`, that one is returned.

    `splits` maps a split's name to its table. Files first, under a fresh id; creating the manifest
    is the commit, so a failed write leaves nothing that a reader could see.
    """
    require_name(name, "dataset")
    about = dict(about or {})
    with tempfile.TemporaryDirectory(prefix="sundog-data-") as folder:
        local = {
            split: _parquet(table, Path(folder), require_name(split, "split"), group_bytes)
            for split, table in splits.items()
        }
        hashes = {split: tuple(file_digest(f) for f in files) for split, files in local.items()}
        existing = _same(root, name, hashes, about)
        if existing:
            return existing
        place = f"{FOLDER}/{name}/files/{uuid.uuid4().hex}"
        written = {}
        for split, files in local.items():
            keys = tuple(f"{place}/{path.name}" for path in files)
            for path, key in zip(files, keys, strict=True):
                root.upload(path, key)
            written[split] = Split(keys, splits[split].num_rows, hashes[split])
    created_s = clock.now_s()

    def body(version: int) -> bytes:
        return encode(_document(Dataset(root, name, version, written, about, created_s)))

    version = commit_next(root, f"{FOLDER}/{name}", "manifest.json", body)
    return Dataset(root, name, version, written, about, created_s)


def open_dataset(root: Root, reference: str) -> Dataset:
    """`name`, `name@3` or `name@latest`. NotFound names what is near."""
    name, version, word = parse_version(reference, "dataset")
    if version is None:
        if word not in ("", "latest"):
            raise NotFound(
                f"{reference}: a dataset has versions, no aliases",
                fix=f"write {name}@latest or {name}@1",
            )
        version = max(taken(root, f"{FOLDER}/{name}"), default=0)
        if not version:
            raise near(root, "dataset", FOLDER, name)
    return _open(root, name, version)


def list_datasets(root: Root) -> list[str]:
    """Names, sorted."""
    return [name for name in root.children(FOLDER) if taken(root, f"{FOLDER}/{name}")]


def digest(root: Root, key: str) -> str:
    """SHA-256 of a stored object, read in pieces."""
    sha256 = hashlib.sha256()
    for piece in root.stream(key):
        sha256.update(piece)
    return sha256.hexdigest()


def _open(root: Root, name: str, version: int) -> Dataset:
    key = f"{FOLDER}/{name}/{version}/manifest.json"
    try:
        document = decode(root.read(key), key, migrations=_MIGRATIONS)
    except NotFound:
        versions = taken(root, f"{FOLDER}/{name}")
        if not versions:
            raise near(root, "dataset", FOLDER, name) from None
        raise NotFound(
            f"no dataset {name}@{version} in {root.url}",
            fix=f"there are versions {', '.join(map(str, versions[-10:]))}",
        ) from None
    splits = {
        split: Split(tuple(s["files"]), int(s["rows"]), tuple(s["sha256"]))
        for split, s in document["splits"].items()
    }
    return Dataset(root, name, version, splits, document["about"], document["created_s"])


def _document(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "version": dataset.version,
        "splits": {
            name: {"files": s.files, "rows": s.rows, "sha256": s.sha256}
            for name, s in dataset.splits.items()
        },
        "about": dataset.about,
        "created_s": dataset.created_s,
    }


def _same(
    root: Root, name: str, hashes: Mapping[str, tuple[str, ...]], about: Mapping[str, Any]
) -> Dataset | None:
    latest = max(taken(root, f"{FOLDER}/{name}"), default=0)
    if not latest:
        return None
    dataset = _open(root, name, latest)
    same = {n: s.sha256 for n, s in dataset.splits.items()} == hashes and encode(
        dataset.about
    ) == encode(about)
    return dataset if same else None


def _parquet(table: pyarrow.Table, folder: Path, split: str, group_bytes: int) -> list[Path]:
    """Files of about 128 MiB in row groups of `group_bytes`: a split can be shared and streamed."""
    import pyarrow.parquet

    num_files = max(1, -(-table.nbytes // _FILE_BYTES))
    rows = max(1, -(-table.num_rows // num_files))
    group = max(1, table.num_rows // max(1, -(-table.nbytes // group_bytes)))
    paths = []
    for index, start in enumerate(range(0, max(table.num_rows, 1), rows)):
        path = folder / f"{split}-{index:05d}.parquet"
        pyarrow.parquet.write_table(table.slice(start, rows), path, row_group_size=group)
        paths.append(path)
    return paths


def _damaged(ref: str, what: str) -> Corrupt:
    return Corrupt(
        f"{ref} is damaged: {what}", fix="write the dataset again; it gets a new version"
    )
