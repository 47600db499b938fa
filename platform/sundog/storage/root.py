"""The storage root: one durable place with atomic writes and compare-and-swap.

Every room builds its commits on `create` and `swap`; nothing here knows what the bytes mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sundog.errors import NotFound, StorageUnavailable

if TYPE_CHECKING:
    import pyarrow.fs

HIDDEN = "."
"""Top-level names that start with this are the root's own: staging files and locks."""
REREAD = "read it again, and change what is there now"

_NOT_YET = {
    "gs": "Google Cloud Storage",
    "gcs": "Google Cloud Storage",
    "az": "Azure Blob Storage",
    "abfs": "Azure Blob Storage",
    "abfss": "Azure Blob Storage",
}
_HOW = "say where: SUNDOG_ROOT=file:///absolute/folder or SUNDOG_ROOT=s3://bucket/prefix"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def file_digest(path: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Entry:
    """One stored object. `size` in bytes, `modified_s` in Unix seconds by the storage's clock."""

    key: str
    size: int
    modified_s: float


class Root(ABC):
    """One durable place. Picklable: it carries an address, never a connection or a credential.

    Keys are relative, `/`-separated, without `.` or `..`. Every method raises
    `StorageUnavailable` when the place cannot be reached, is full or denies access.
    """

    url: str
    is_local: bool

    def read(self, key: str) -> bytes:
        """The object's bytes. NotFound."""
        return self.read_tagged(key)[0]

    @abstractmethod
    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """The bytes and the etag to hand to `swap`. NotFound."""

    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Many small objects, in the order of their keys; None for one that is not there."""
        return [self._read_or_none(key) for key in keys]

    def _read_or_none(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except NotFound:
            return None

    @abstractmethod
    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """The object in pieces, from byte `start`, for what may not fit in memory. NotFound."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Replace atomically: readers see the old bytes or the new, never a mixture."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> str:
        """Write only if absent; exactly one of many racing callers wins. AlreadyExists."""

    @abstractmethod
    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        """Replace only if the etag still holds (None: only if absent). Conflict."""

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def delete(self, key: str) -> None:
        """Idempotent."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Everything below a folder, sorted by key."""

    @abstractmethod
    def children(self, prefix: str = "") -> list[str]:
        """Names one level below a folder, sorted; of folders and objects alike."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """A local file to a key; nothing is visible until all of it is there."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """A key to a local file, which appears whole or not at all. NotFound."""

    @abstractmethod
    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """For pyarrow and Ray Data: the filesystem, and the root's path inside it."""

    @abstractmethod
    def leftovers(self) -> Iterator[Entry]:
        """What unfinished writes left behind, never visible through `entries`."""

    @abstractmethod
    def delete_leftover(self, entry: Entry) -> None: ...

    def delete_prefix(self, prefix: str) -> int:
        """Delete everything below a folder; returns how many objects."""
        keys = [entry.key for entry in self.entries(prefix)]
        for key in keys:
            self.delete(key)
        return len(keys)

    def uri(self, key: str) -> str:
        """The key's full address."""
        return f"{self.url}/{checked(key)}"

    def local_path(self, key: str) -> Path:
        """Where a key lies on this machine's disk; local roots only."""
        raise StorageUnavailable(
            f"{self.url} has no path on this machine", fix="download the key first"
        )

    def __str__(self) -> str:
        return self.url


def checked(key: str) -> str:
    """The key, if it is one; a key that would leave the root is a programming error."""
    parts = key.split("/")
    if not key or any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise ValueError(f"{key!r} is not a storage key: write a/b/c, relative, without '..'")
    if parts[0].startswith(HIDDEN):
        raise ValueError(f"{key!r} is not a storage key: '{parts[0]}' is the root's own")
    return key


def folder(prefix: str) -> str:
    """A prefix without its trailing slash; empty for the root itself."""
    prefix = prefix.rstrip("/")
    return checked(prefix) if prefix else ""


def missing(root: Root, key: str) -> NotFound:
    return NotFound(f"{key} is not in {root.url}", fix="see what is there, or check SUNDOG_ROOT")


@contextlib.contextmanager
def arriving(key: str, path: Path) -> Iterator[Path]:
    """A file beside `path` to write to; it becomes `path` at the end, or vanishes on an error.

    An OSError of the block is this machine's disk, not the root's.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageUnavailable(
            f"cannot copy {key} to {path}: {error.strerror or error}",
            fix="free space on this machine's disk, or set TMPDIR to a larger one",
        ) from error


def _inside_ray() -> bool:
    # A job's driver gets the first, a worker process the second.
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "RAY_RAYLET_PID" in os.environ


def open_root(url: str | None = None) -> Root:
    """Open a storage root: `file:///abs/path`, a path, or `s3://bucket/prefix`.

    None means `$SUNDOG_ROOT`. Reaches nothing yet: the first read or write does.
    """
    address = (url or os.environ.get("SUNDOG_ROOT", "")).strip()
    if not address:
        raise StorageUnavailable("no storage root is set", fix=_HOW)
    scheme, separator, rest = address.partition("://")
    if not separator:
        return _open_local(address)
    if scheme == "file":
        return _open_local(rest, address)
    if scheme == "s3":
        return _open_s3(rest, address)
    if scheme in _NOT_YET:
        raise StorageUnavailable(
            f"{address}: {_NOT_YET[scheme]} is not yet supported as a storage root",
            fix="use s3:// (any S3-compatible service, AWS_ENDPOINT_URL names it) or file:///",
        )
    raise StorageUnavailable(f"{address} is not a storage root", fix=_HOW)


def _open_local(path: str, address: str = "") -> Root:
    from sundog.storage.local import LocalRoot

    place = Path(path).expanduser()
    if address and not path.startswith("/"):
        raise StorageUnavailable(
            f"{address} is not an absolute file root", fix="write file:///absolute/folder"
        )
    if not place.is_absolute():
        if _inside_ray():
            # Ray runs a job in a copy of its working directory and deletes that copy.
            raise StorageUnavailable(
                f"the storage root {path!r} is relative: it would be lost with the job's copy of "
                "the working directory",
                fix=_HOW,
            )
        place = Path.cwd() / place
    return LocalRoot(f"file://{os.path.normpath(place)}")


def _open_s3(rest: str, address: str) -> Root:
    from sundog.storage.s3 import S3Root

    bucket, _, prefix = rest.partition("/")
    prefix = "/".join(part for part in prefix.split("/") if part)
    if not _BUCKET.fullmatch(bucket) or ".." in prefix.split("/"):
        raise StorageUnavailable(f"{address} is not an S3 root", fix="write s3://bucket/prefix")
    return S3Root(f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}")


def require_shared(root: Root, num_hosts: int) -> None:
    """Refuse a root that the other hosts of a cluster cannot see."""
    if root.is_local and num_hosts > 1:
        raise StorageUnavailable(
            f"{root.url} is a folder of one machine, this cluster has {num_hosts} hosts: "
            "the others would not find what one of them writes",
            fix="use a root that all hosts reach: SUNDOG_ROOT=s3://bucket/prefix",
        )
